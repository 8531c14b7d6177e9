import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from rcnn.inference.step import DetectStep, ProposeStep, compiled
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.structures import Detections
from tests import tiny

CPU = torch.device("cpu")


def trained(**changes: object) -> FasterRCNN:
    """A detector whose scores are far from each other, so that rounding does not reorder them."""
    model = tiny.detector(**changes)
    with torch.no_grad():
        for layer in (model.rpn.cls, model.rpn.box, model.head.cls_score, model.head.bbox_pred):
            layer.weight.mul_(30)
    return model


def close(a: Detections, b: Detections, atol: float = 1e-3) -> bool:
    return all(torch.allclose(x.float(), y.float(), atol=atol) for x, y in zip(a, b, strict=True))


def in_place_order(found: Detections) -> Detections:
    """Each image's detections from left to right: on black every score is the same but for its last bit."""
    order = (found.boxes.round(decimals=1) * torch.tensor([1e6, 1e3, 1e0, 1e-3]).double()).sum(-1).argsort(dim=1)
    rows = [x.gather(1, order if x.dim() == 2 else order[..., None].expand_as(x)) for x in found]
    return Detections(*rows)


def test_definition_is_the_models_forward_in_evaluation() -> None:
    model, batch = trained(dropout=0.5), tiny.batch()
    found = DetectStep(model.train(), device=CPU)(batch)
    assert not model.training
    with torch.no_grad():
        assert close(found, model(batch.images, batch.image_size, batch.scale), atol=0)
    assert found.valid.any() and not any(x.requires_grad for x in found)


def test_weights_become_channels_last_and_stay_equal() -> None:
    model = tiny.detector()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    DetectStep(model, device=CPU)
    assert model.rpn.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("roi_op", ["pool", "align"])
def test_bf16_finds_nearly_the_same(roi_op: str) -> None:
    batch = tiny.batch()
    exact = DetectStep(trained(roi_op=roi_op), device=CPU)(batch)
    rounded = DetectStep(trained(roi_op=roi_op), device=CPU, bf16=True)(batch)
    assert rounded.scores.dtype == rounded.boxes.dtype == torch.float32
    assert (rounded.scores[:, 0] - exact.scores[:, 0]).abs().max() < 0.05


@pytest.mark.parametrize("winograd", [False, True])
def test_winograds_method_is_for_whom_asks(winograd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wide(tiny.Patches):
        channels = 64

    monkeypatch.delenv("RCNN_KERNELS", raising=False)
    monkeypatch.setattr("rcnn.ops.winograd.LEAST_WORK", 0)
    batch, model = tiny.batch(), trained(backbone=Wide(), rpn_hidden=64)
    exact, step = DetectStep(model, device=CPU)(batch), DetectStep(model, device=CPU, winograd=winograd)
    assert close(step(batch), exact)
    given = ProposeStep(model, tiny.PROPOSALS, device=CPU)(batch)
    proposing = ProposeStep(model, tiny.PROPOSALS, device=CPU, winograd=winograd)
    assert torch.allclose(proposing(batch).boxes, given.boxes, atol=1e-3)
    for own in (step.model, proposing.model):
        assert len(own.rpn.conv.weight) == (36 if winograd else 64)  # points or outputs


@pytest.mark.compile
@pytest.mark.parametrize(
    ("roi_op", "offset", "bf16"), [("pool", 1.0, False), ("align", 0.0, False), ("pool", 1.0, True)]
)
def test_one_program_serves_any_picture_and_equals_eager(roi_op: str, offset: float, bf16: bool) -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = DetectStep(trained(roi_op=roi_op, offset=offset), device=CPU, bf16=bf16, backend=counter)
    eager = DetectStep(trained(roi_op=roi_op, offset=offset), device=CPU, bf16=bf16)
    for seed in range(3):
        batch = tiny.batch(seed=seed)
        batch = batch._replace(image_size=batch.image_size - 7 * seed, scale=batch.scale / (1 + seed))
        assert close(step(batch), eager(batch))
    black = tiny.batch()._replace(images=torch.zeros(2, *tiny.CANVAS, 3, dtype=torch.uint8))
    found, expected = step(black), eager(black)
    assert close(in_place_order(found), in_place_order(expected))
    assert counter.frame_count == 1


@pytest.mark.compile
def test_there_may_be_more_canvases_than_pytorch_expects() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("eager")

    def twice(x: Tensor) -> Tensor:
        return 2 * x

    program = compiled(twice, counter)
    for width in [*range(1, 21), *range(1, 21)]:
        assert program(torch.ones(width)).sum() == 2 * width
    assert counter.frame_count == 20
    assert compiled(twice, None) is twice


def test_proposals_are_those_of_the_model_by_the_rules_given() -> None:
    model, batch = trained(), tiny.batch()
    found = ProposeStep(model, tiny.PROPOSALS._replace(post_nms=7), device=CPU)(batch)
    with torch.no_grad():
        rpn = model.rpn(model.features(batch.images, batch.image_size), batch.image_size)
        expected = model.propose(rpn, batch.image_size, batch.scale, tiny.PROPOSALS)
    assert found.boxes.shape == (2, 7, 4) and found.valid.all()
    assert torch.equal(found.boxes, expected.boxes[:, :7]) and torch.equal(found.scores, expected.scores[:, :7])


def test_proposals_of_the_batch_take_the_place_of_the_rpn() -> None:
    model, batch = trained(), tiny.batch()
    step = DetectStep(model, device=CPU)
    given = ProposeStep(model, tiny.PROPOSALS, device=CPU)(batch)
    own = step(batch)
    assert close(own, step(batch._replace(proposals=given.boxes, proposals_valid=given.valid)), atol=1e-5)
    none = step(batch._replace(proposals=given.boxes, proposals_valid=torch.zeros_like(given.valid)))
    assert own.valid.any() and not none.valid.any()


@pytest.mark.compile
def test_proposing_is_one_program_for_any_picture() -> None:
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    step = ProposeStep(trained(), tiny.PROPOSALS, device=CPU, backend=counter)
    for seed in range(3):
        batch = tiny.batch(seed=seed)
        assert torch.allclose(step(batch).boxes, ProposeStep(trained(), tiny.PROPOSALS, device=CPU)(batch).boxes)
    assert counter.frame_count == 1
