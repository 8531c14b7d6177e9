from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from rcnn.benchmark import network
from rcnn.benchmark.network import made_up_batch, open_network, precision_name, spread_outputs, with_precision
from rcnn.benchmark.task import count_work
from rcnn.models.quantised import PackedConv, has_kernels
from rcnn.models.vgg import STAGES
from tests.benchmark.small import settings


def vgg_flops(height: int, width: int, *, hidden: int, anchors: int, rois: int, fc: int, classes: int) -> int:
    """Of one image, by hand: two for each weight and place."""
    total, channels, cells = 0, 3, height * width
    for i, widths in enumerate(STAGES):
        for out in widths:
            total += 2 * 9 * channels * out * (cells >> 2 * i)
            channels = out
    cells >>= 8
    total += 2 * cells * (9 * 512 * hidden + hidden * 6 * anchors)
    return total + 2 * rois * (512 * 49 * fc + fc * fc + fc * 5 * (classes + 1))


def test_work_of_vgg16_by_hand() -> None:
    model = {"backbone": "vgg16", "frozen": ("conv1", "conv2")}
    work = count_work(open_network(settings("infer", model=model)))
    assert work.rois == 10
    assert work.flops == vgg_flops(64, 96, hidden=8, anchors=6, rois=10, fc=16, classes=20)


@pytest.mark.parametrize(("what", "rois"), [("infer", 10), ("train", 8)])
def test_the_second_stage_gets_the_recipes_rois_of_every_image(what: Any, rois: int) -> None:
    assert count_work(open_network(settings(what, batch=2))).rois == 2 * rois


def test_training_is_more_work_than_inference_and_frozen_layers_save_some() -> None:
    infer = count_work(open_network(settings("infer"))).flops
    train = count_work(open_network(settings("train"))).flops
    all_trained = count_work(open_network(settings("train", model={"frozen": ()}))).flops
    assert infer < train < all_trained


def test_a_training_run_leaves_the_weights_as_they_are() -> None:
    task = open_network(settings("train"))
    assert task.head is not None
    before = {name: value.clone() for name, value in task.head.state_dict().items()}
    task.run()
    task.run()
    assert all(torch.equal(before[name], value) for name, value in task.head.state_dict().items())


@pytest.mark.parametrize(("what", "rois"), [("infer", 40), ("train", 8)])
def test_a_fast_rcnn_has_proposals_and_runs_no_rpn(what: Any, rois: int) -> None:
    joint = settings(what, model={"frozen": ("all",)}, batch=2)
    recipe = joint.recipe
    train, data = replace(recipe.train, method="fast_rcnn"), replace(recipe.data, max_proposals=40)
    fast = count_work(open_network(replace(joint, recipe=replace(recipe, train=train, data=data))))
    assert fast.rois == 2 * rois
    if what == "train":
        assert fast.flops < count_work(open_network(joint)).flops


def test_a_training_in_phases_has_no_step_to_time() -> None:
    given = settings("train")
    alternate = replace(given.recipe, train=replace(given.recipe.train, method="alternate"))
    with pytest.raises(ValueError, match="its training is alternate, in phases"):
        open_network(replace(given, recipe=alternate))


def test_precision_goes_to_both_parts_of_the_recipe() -> None:
    recipe = with_precision(settings("infer", precision="bf16"))
    assert (recipe.train.precision, recipe.eval.precision) == ("bf16", "bf16")
    given = settings("infer")
    assert with_precision(given) == given.recipe
    assert open_network(settings("infer", precision="bf16")).precision == "bf16"


def test_winograds_method_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rcnn.ops.winograd.LEAST_WORK", 0)
    asked = settings("infer", precision="fp32", winograd=True)
    assert with_precision(asked).eval.winograd and not with_precision(settings("infer")).eval.winograd
    assert count_work(open_network(asked)) == count_work(open_network(settings("infer", precision="fp32")))


@pytest.mark.skipif(not has_kernels(torch.device("cpu")), reason="int8 wants a processor with VNNI or AMX")
def test_int8_is_the_same_work() -> None:
    asked = open_network(settings("infer", precision="fp32", int8=True))
    assert isinstance(asked.head, nn.Module) and any(isinstance(x, PackedConv) for x in asked.head.modules())
    assert count_work(asked).rois == count_work(open_network(settings("infer", precision="fp32"))).rois


def test_precision_names() -> None:
    cpu = torch.device("cpu")
    assert [precision_name(name, cpu) for name in ("fp32", "bf16")] == ["fp32", "bf16"]
    assert precision_name("auto", cpu) in ("fp32", "bf16")


@pytest.mark.parametrize(("height", "width"), [(64, 96), (97, 33)])
def test_the_batch_is_whole_and_always_the_same(height: int, width: int) -> None:
    batch = made_up_batch(2, height, width, 5)
    assert batch.images.shape == (2, height, width, 3)
    assert batch.boxes_valid.sum(1).tolist() == [network.OBJECTS] * 2
    objects, labels = batch.boxes[batch.boxes_valid], batch.labels[batch.boxes_valid]
    assert (objects >= 0).all() and (objects[:, 2:] <= torch.tensor([width, height]) - 1).all()
    assert (objects[:, 2:] > objects[:, :2]).all()
    assert labels.min() >= 1 and labels.max() <= 5
    assert not batch.boxes[~batch.boxes_valid].any() and not batch.labels[~batch.boxes_valid].any()
    assert all(torch.equal(a, b) for a, b in zip(batch, made_up_batch(2, height, width, 5), strict=True))


def test_one_class_beside_background_is_likely() -> None:
    logits = nn.Linear(4, 5)
    network.favour_one_class(logits)
    likely = logits(torch.rand(5, 4)).softmax(-1) > 0.001
    assert likely.tolist() == [[True, True, False, False, False]] * 5


def test_outputs_are_spread_by_channel() -> None:
    hidden = torch.rand(1, 4, 6, 8) + 5
    logits, deltas = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 12, 1)
    spread_outputs(hidden, logits=logits, deltas=deltas)
    for layer, std in ((logits, 1.0), (deltas, 0.1)):
        out = layer(hidden)
        torch.testing.assert_close(out.mean((0, 2, 3)), torch.zeros(len(layer.weight)), atol=1e-3, rtol=0)
        torch.testing.assert_close(out.std((0, 2, 3)), torch.full((len(layer.weight),), std), rtol=1e-3, atol=0)
