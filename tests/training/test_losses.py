import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from rcnn.structures import AnchorTargets, Batch, RoiTargets, RpnOutput
from rcnn.training.losses import fast_rcnn_loss, head_terms, joint_loss, rpn_loss, rpn_terms, smooth_l1
from tests import tiny

LOSSES = ("rpn_cls", "rpn_box", "head_cls", "head_box")


# --- each loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 3.0])
def test_definition_of_smooth_l1(sigma: float) -> None:
    for x in (0.0, 0.05, -0.11, 0.5, -2.0, 30.0):
        small = abs(x) < 1 / sigma**2
        expected = 0.5 * (sigma * x) ** 2 if small else abs(x) - 0.5 / sigma**2
        assert smooth_l1(torch.tensor([x]), sigma=sigma).item() == pytest.approx(expected, abs=1e-6)


def test_smooth_l1_is_torchs_with_beta() -> None:
    x = torch.randn(1000)
    expected = F.smooth_l1_loss(x, torch.zeros(1000), beta=1 / 9, reduction="none")
    assert torch.allclose(smooth_l1(x, sigma=3.0), expected, atol=1e-6)


def test_definition_of_the_rpns_losses() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5, 9.0]])
    deltas = torch.zeros(1, 4, 4)
    deltas[0, 0, 0], deltas[0, 1, 1] = 2.0, 100.0
    rpn = RpnOutput(logits, deltas, torch.zeros(4, 4), torch.ones(1, 4, dtype=torch.bool))
    positive = torch.tensor([[True, False, False, False]])
    chosen = torch.tensor([[True, True, True, False]])
    found = rpn_terms(rpn, AnchorTargets(positive, chosen, torch.zeros(1, 4, 4)), count=256, sigma=1.0)
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5))) / 3
    assert found["rpn_cls"].item() == pytest.approx(expected, rel=1e-5)
    assert found["rpn_box"].item() == pytest.approx(1.5 / 256, rel=1e-5)
    assert found["rpn_accuracy"].item() == pytest.approx(2 / 3)


def test_the_rpns_logit_is_a_softmax_over_two() -> None:
    pair = torch.randn(1, 50, 2)
    positive = torch.rand(1, 50) < 0.5
    rpn = RpnOutput(pair[..., 1] - pair[..., 0], torch.zeros(1, 50, 4), torch.zeros(50, 4), positive)
    targets = AnchorTargets(positive, torch.ones_like(positive), torch.zeros(1, 50, 4))
    expected = F.cross_entropy(pair[0], positive[0].long())
    assert torch.allclose(rpn_terms(rpn, targets, count=1, sigma=1.0)["rpn_cls"], expected)


def test_definition_of_the_heads_losses() -> None:
    logits = torch.tensor([[[0.0, 2.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 9.0]]])
    deltas = torch.full((1, 3, 3, 4), 100.0)
    deltas[0, 0, 1] = torch.tensor([0.5, 0.0, 0.0, 3.0])
    labels = torch.tensor([[1, 0, 0]])
    valid = torch.tensor([[True, True, False]])
    found = head_terms(logits, deltas, RoiTargets(torch.zeros(1, 3, 4), labels, torch.zeros(1, 3, 4), valid), sigma=1)
    expected = (-2 + math.log(2 + math.exp(2)) - 1 + math.log(2 + math.exp(1))) / 2
    assert found["head_cls"].item() == pytest.approx(expected, rel=1e-5)
    assert found["head_box"].item() == pytest.approx((0.125 + 2.5) / 2, rel=1e-5)
    assert found["head_accuracy"].item() == 1


def test_what_stands_in_padding_has_no_weight_and_no_gradient() -> None:
    logits, deltas = torch.randn(1, 6, 3, requires_grad=True), torch.randn(1, 6, 3, 4, requires_grad=True)
    labels = torch.tensor([[1, 2, 0, 0, 1, 2]])
    valid = torch.arange(6)[None] < 4
    targets = RoiTargets(torch.zeros(1, 6, 4), labels, torch.randn(1, 6, 4), valid)
    whole = head_terms(logits, deltas, targets, sigma=1.0)
    cut = head_terms(logits[:, :4], deltas[:, :4], RoiTargets(*(x[:, :4] for x in targets)), sigma=1.0)
    assert all(torch.allclose(whole[name], cut[name]) for name in whole)
    (whole["head_cls"] + whole["head_box"]).backward()
    assert logits.grad is not None and deltas.grad is not None
    assert not logits.grad[:, 4:].any() and not deltas.grad[:, 4:].any()


# --- the joint loss -------------------------------------------------------------------------------------------------


def losses(batch: Batch, **changes: object) -> dict[str, Tensor]:
    return joint_loss(tiny.detector(), batch, tiny.rules(**changes))


def agree(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return set(a) == set(b) and all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def test_the_loss_is_the_sum_of_four() -> None:
    found = losses(tiny.batch())
    assert set(found) == {*LOSSES, "loss", "rpn_accuracy", "head_accuracy"}
    assert found["loss"].item() == pytest.approx(sum(found[name].item() for name in LOSSES), rel=1e-5)
    assert all(found[name].item() > 0 for name in LOSSES)
    assert not found["rpn_accuracy"].requires_grad and not found["head_accuracy"].requires_grad


@pytest.mark.parametrize("more", [{"height": 32}, {"slots": 3}, {"height": 16, "slots": 20}])
def test_padding_below_and_more_slots_change_no_loss(more: dict[str, int]) -> None:
    batch = tiny.batch(objects=(3, 1))
    assert agree(losses(batch), losses(tiny.pad(batch, **more)))


def test_padding_beside_the_picture_changes_no_loss_but_which_anchors_chance_takes() -> None:
    batch = tiny.batch(objects=(3, 1))
    all_anchors = {"count": 1000, "positive_share": 1.0}
    assert agree(losses(batch, **all_anchors), losses(tiny.pad(batch, width=32, height=16), **all_anchors))


def test_what_stands_on_the_canvas_beside_the_picture_changes_no_loss() -> None:
    batch = tiny.batch(objects=(2, 1))._replace(image_size=torch.tensor([[48, 96], [64, 80]]))
    batch.boxes.clamp_(max=47)
    images = batch.images.clone()
    images[0, 48:], images[1, :, 80:] = 255, 3
    assert agree(losses(batch), losses(batch._replace(images=images)))


def test_a_batch_is_the_mean_of_its_images() -> None:
    batch = tiny.batch(objects=(3, 2))
    together = losses(batch)
    alone = [losses(tiny.rows(batch, i)) for i in range(2)]
    for name in together:
        expected = (alone[0][name] + alone[1][name]) / 2
        assert torch.allclose(together[name], expected, atol=1e-5), name


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_batch_without_any_box_has_finite_losses_and_gradients(offset: float) -> None:
    model, batch = tiny.detector(offset=offset), tiny.batch(objects=(0, 0))
    found = joint_loss(model, batch, tiny.rules())
    found["loss"].backward()
    assert found["rpn_box"] == 0 and found["head_box"] == 0
    assert found["rpn_cls"] > 0 and found["head_cls"] > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_an_empty_place_in_the_batch_has_no_weight() -> None:
    """It counts as an image whose losses are 0: what shares a step out makes up for it."""
    batch = with_own_proposals(tiny.batch(objects=(2, 3)))
    empty = batch._replace(image_index=torch.tensor([0, -1]))
    for loss in (joint_loss, rpn_loss, fast_rcnn_loss):
        alone, found = (loss(tiny.detector(), each, tiny.rules()) for each in (tiny.rows(batch, 0), empty))
        for name in found:
            assert torch.allclose(found[name], alone[name] / 2, atol=1e-6), name


def test_a_batch_is_the_mean_of_its_images_when_they_have_different_numbers_of_rois() -> None:
    batch = with_own_proposals(tiny.batch(objects=(3, 2)))
    few = batch.proposals_valid.clone()
    few[0, 1:] = False
    batch = batch._replace(proposals_valid=few)
    together = fast_rcnn_loss(tiny.detector(), batch, tiny.rules())
    alone = [fast_rcnn_loss(tiny.detector(), tiny.rows(batch, i), tiny.rules()) for i in range(2)]
    for name in together:
        assert torch.allclose(together[name], (alone[0][name] + alone[1][name]) / 2, atol=1e-5), name


def test_a_batch_where_nothing_can_be_sampled_gives_0() -> None:
    batch = tiny.batch(objects=(0,))._replace(image_size=torch.tensor([[3, 3]]))
    model = tiny.detector()
    found = joint_loss(model, batch, tiny.rules())
    assert found["loss"] == 0
    found["loss"].backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_ignored_boxes_are_neither_learnt_nor_background() -> None:
    batch = tiny.batch(objects=(1,))
    batch.boxes[0, 0] = torch.tensor([0.0, 0.0, 95.0, 63.0])
    everything_ignored = batch._replace(boxes_valid=batch.boxes_ignored, boxes_ignored=batch.boxes_valid)
    found = losses(everything_ignored)
    assert found["loss"] == 0
    assert losses(everything_ignored, ignore_overlap=2.0, roi_ignore_overlap=2.0)["loss"] > 0


def test_gradients_reach_every_part_of_the_network() -> None:
    model = tiny.detector()
    joint_loss(model, tiny.batch(), tiny.rules())["loss"].backward()
    assert all(p.grad is not None and p.grad.any() for _, p in model.named_parameters())


def test_losses_are_float32_under_bf16_and_close() -> None:
    expected = losses(tiny.batch())
    with torch.autocast("cpu", torch.bfloat16):
        found = losses(tiny.batch())
    for name in LOSSES:
        assert found[name].dtype == torch.float32
        assert torch.allclose(found[name], expected[name], rtol=0.1, atol=0.02), name


# --- each stage alone -----------------------------------------------------------------------------------------------


def with_own_proposals(batch: Batch) -> Batch:
    """The batch with the proposals that the joint loss would train the second stage on."""
    model, rules = tiny.detector(), tiny.rules()
    rpn = model.rpn(model.features(batch.images, batch.image_size), batch.image_size)
    found = model.propose(rpn, batch.image_size, batch.scale, rules.proposals)
    return batch._replace(proposals=found.boxes, proposals_valid=found.valid)


def test_the_stages_alone_are_the_halves_of_the_joint_loss() -> None:
    batch = with_own_proposals(tiny.batch(objects=(3, 2)))
    joint = losses(batch)
    rpn, head = (loss(tiny.detector(), batch, tiny.rules()) for loss in (rpn_loss, fast_rcnn_loss))
    assert set(rpn) == {"loss", "rpn_cls", "rpn_box", "rpn_accuracy"}
    assert set(head) == {"loss", "head_cls", "head_box", "head_accuracy"}
    for name, value in (rpn | head).items():
        if name != "loss":
            assert torch.equal(value, joint[name]), name
    assert torch.allclose(rpn["loss"] + head["loss"], joint["loss"])


def test_a_stage_alone_leaves_the_other_without_gradient() -> None:
    batch = with_own_proposals(tiny.batch(objects=(3, 2)))
    for loss, other in ((rpn_loss, "head."), (fast_rcnn_loss, "rpn.")):
        model = tiny.detector()
        loss(model, batch, tiny.rules())["loss"].backward()
        without = {name for name, p in model.named_parameters() if p.grad is None}
        assert without == {name for name, _ in model.named_parameters() if name.startswith(other)}


def test_fast_rcnn_without_a_proposal_or_an_object_is_finite() -> None:
    batch = tiny.batch(objects=(0, 0))
    batch = batch._replace(proposals=torch.zeros(2, 5, 4), proposals_valid=torch.zeros(2, 5, dtype=torch.bool))
    model = tiny.detector()
    found = fast_rcnn_loss(model, batch, tiny.rules())
    found["loss"].backward()
    assert found["loss"] == 0 and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
