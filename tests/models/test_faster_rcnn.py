"""Features, proposals, classification, detection; tests/inference/test_step.py holds that the whole compiles."""

import pytest
import torch
from torch import Tensor

from rcnn.models.faster_rcnn import DetectionRules, FasterRCNN, ProposalRules
from rcnn.ops.boxes import decode, encode, iou
from rcnn.structures import Detections, Proposals, RpnOutput
from tests import tiny

SIZE = torch.tensor([[64, 96]])
BOX_STD = torch.tensor([0.1, 0.1, 0.2, 0.2])


def rpn_output(boxes: Tensor, logits: Tensor) -> RpnOutput:
    """What an RPN says whose anchors (A, 4) are right as they are."""
    batch, anchors = logits.shape
    valid = torch.ones(batch, anchors, dtype=torch.bool)
    return RpnOutput(logits, torch.zeros(batch, anchors, 4), boxes, valid)


def propose(model: FasterRCNN, output: RpnOutput, *, scale: float = 1.0, **rules: float) -> Proposals:
    chosen = ProposalRules(**({"pre_nms": 100, "post_nms": 6, "nms": 0.7, "min_size": 4} | rules))
    images = len(output.logits)
    return model.propose(output, SIZE.expand(images, 2), torch.full((images,), scale), chosen)


# --- features -------------------------------------------------------------------------------------------------------


def test_definition_of_normalisation() -> None:
    model, batch = tiny.detector(pixel_std=(2.0, 4.0, 8.0)), tiny.batch()
    x = (batch.images.float() - torch.tensor([120.5, 115.5, 105.5])) / torch.tensor([2.0, 4.0, 8.0])
    expected = model.backbone(x.permute(0, 3, 1, 2))
    assert torch.allclose(model.features(batch.images, batch.image_size), expected, atol=1e-5)


def test_the_canvas_outside_the_picture_is_zero_after_normalisation() -> None:
    model, batch = tiny.detector(), tiny.batch()
    size = torch.tensor([[40, 50], [64, 96]])
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    model.features(batch.images, size)
    assert (seen[0][0, :, :40, :50] != 0).all()
    assert not seen[0][0, :, 40:].any() and not seen[0][0, :, :, 50:].any()
    assert seen[0][1].abs().min() > 0


# --- proposals ------------------------------------------------------------------------------------------------------


def test_definition_of_proposals() -> None:
    anchors = torch.tensor(
        [[0, 0, 20, 20], [1, 0, 20, 20], [50, 10, 80, 40], [-30, -30, 20, 30], [5, 5, 7, 60]]
    ).float()
    output = rpn_output(anchors, torch.tensor([[1.0, 2.0, 0.5, 3.0, 9.0]]))
    found = propose(tiny.detector(), output)
    # the last is 3 pixels wide; the first overlaps the second by 0.95; the fourth is cut at the edge
    assert found.boxes[0, :3].tolist() == [[0, 0, 20, 30], [1, 0, 20, 20], [50, 10, 80, 40]]
    assert torch.allclose(found.scores[0, :3], torch.tensor([3.0, 2.0, 0.5]).sigmoid())
    assert found.valid[0].tolist() == [True, True, True, False, False]


def test_empty_slots_are_zero() -> None:
    output = rpn_output(tiny.boxes(1, 2) + 1, torch.randn(1, 2))
    found = propose(tiny.detector(), output._replace(anchors_valid=torch.zeros(1, 2, dtype=torch.bool)))
    assert not found.valid.any() and not found.boxes.any() and not found.scores.any()


@pytest.mark.parametrize(("scale", "kept"), [(1.0, 2), (2.0, 1), (4.0, 0)])
def test_the_least_size_is_in_pixels_of_the_original(scale: float, kept: int) -> None:
    output = rpn_output(torch.tensor([[0.0, 0.0, 9.0, 40.0], [50.0, 0.0, 69.0, 30.0]]), torch.tensor([[1.0, 0.0]]))
    assert propose(tiny.detector(), output, scale=scale, min_size=10).valid.sum() == kept


def test_anchors_off_the_picture_never_propose_whatever_their_score() -> None:
    boxes = tiny.boxes(1, 40)
    output = rpn_output(boxes, torch.linspace(-9, 9, 40)[None])._replace(anchors_valid=torch.arange(40)[None] < 20)
    found = propose(tiny.detector(), output, nms=1.0, post_nms=40)
    assert found.valid.sum() == 20
    assert torch.equal(found.boxes[0, :20], boxes[:20].flip(0))


def test_only_the_best_before_nms_take_part() -> None:
    boxes = tiny.boxes(1, 30)
    found = propose(tiny.detector(), rpn_output(boxes, torch.linspace(-9, 9, 30)[None]), pre_nms=5, post_nms=5, nms=1.0)
    assert torch.equal(found.boxes[0], boxes.flip(0)[:5])


def test_equal_scores_are_ranked_by_position() -> None:
    boxes = tiny.boxes(1, 30)
    found = propose(tiny.detector(), rpn_output(boxes, torch.arange(50.0, 80.0)[None]), pre_nms=5, post_nms=5, nms=1.0)
    assert torch.equal(found.boxes[0], boxes[:5])  # every probability rounds to 1


def test_proposals_are_best_first_apart_on_the_picture_and_without_gradient() -> None:
    model, batch = tiny.detector(), tiny.batch()
    size = torch.tensor([[60, 90], [33, 96]])
    output = model.rpn(model.features(batch.images, size), size)
    rules = ProposalRules(pre_nms=144, post_nms=50, nms=0.5, min_size=4)
    found = model.propose(output, size, torch.ones(2), rules)
    assert not found.boxes.requires_grad and not found.scores.requires_grad
    assert (found.scores[:, :-1] >= found.scores[:, 1:]).all()
    limit = torch.tensor([[89.0, 59.0], [95.0, 32.0]])[:, None]
    assert (found.boxes >= 0).all() and (found.boxes[..., 2:] <= limit).all()
    overlaps = iou(found.boxes, found.boxes, offset=1.0) * (found.valid[:, :, None] & found.valid[:, None])
    assert (overlaps - torch.eye(50)).max() <= 0.5 + 1e-6


# --- classification -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("roi_op", ["pool", "align"])
def test_rois_of_an_image_see_its_own_features(roi_op: str) -> None:
    model, batch = tiny.detector(roi_op=roi_op).eval(), tiny.batch()
    features = model.features(batch.images, batch.image_size)
    rois = tiny.boxes(3, 10).view(2, 5, 4)
    logits, deltas = model.classify(features, rois)
    assert logits.shape == (2, 5, 4) and deltas.shape == (2, 5, 4, 4)
    alone = model.classify(features[1:], rois[1:])
    assert torch.allclose(logits[1:], alone[0], atol=1e-5) and torch.allclose(deltas[1:], alone[1], atol=1e-5)


def test_deltas_are_grouped_by_class() -> None:
    model = tiny.detector(classes=2)
    torch.nn.init.zeros_(model.head.bbox_pred.weight)
    with torch.no_grad():
        model.head.bbox_pred.bias.copy_(torch.arange(12.0))
    _, deltas = model.classify(torch.zeros(1, 8, 4, 6), tiny.boxes(1, 1)[None])
    assert torch.equal(deltas[0, 0], torch.arange(12.0).view(3, 4))


# --- detection ------------------------------------------------------------------------------------------------------


def sizes(images: int = 1, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Size and scale of pictures that fill their canvas."""
    return SIZE.expand(images, 2), torch.full((images,), scale)


def detect(
    boxes: Tensor, scores: Tensor, rules: DetectionRules, *, valid: Tensor | None = None, scale: float = 1.0
) -> Detections:
    """Detections where the head gives proposals (B, P, 4) the probabilities (B, P, K) and does not move them."""
    model = tiny.detector(classes=scores.shape[2] - 1, detection_rules=rules)
    valid = torch.ones(boxes.shape[:2], dtype=torch.bool) if valid is None else valid
    proposals = Proposals(boxes, torch.zeros(boxes.shape[:2]), valid)
    return model.detect(proposals, scores.log(), torch.zeros(*scores.shape, 4), *sizes(len(boxes), scale))


BOXES = torch.tensor([[[0.0, 0.0, 20.0, 20.0], [0.0, 0.0, 20.0, 22.0], [40.0, 0.0, 80.0, 30.0]]])
SCORES = torch.tensor([[[0.1, 0.6, 0.3], [0.1, 0.7, 0.2], [0.05, 0.05, 0.9]]])  # background, class 1, class 2


def test_definition_with_two_classes() -> None:
    found = detect(BOXES, SCORES, DetectionRules(score=0.1, nms=0.3, most=5))
    # class 1: the second box hides the first, the third is too weak; class 2: the first box hides the second
    assert found.labels[0].tolist() == [2, 1, 2, 0, 0]
    assert torch.allclose(found.scores[0], torch.tensor([0.9, 0.7, 0.3, 0, 0]))
    assert torch.equal(found.boxes[0, :3], BOXES[0, [2, 1, 0]])
    assert found.valid[0].tolist() == [True, True, True, False, False]


def test_overlap_is_judged_in_pixels_of_the_original() -> None:
    # one pixel of offset weighs more the smaller the picture is: IoU 11/31 of canvas pixels, 6/16 of original ones
    boxes = torch.tensor([[[0.0, 0.0, 20.0, 9.0], [10.0, 0.0, 30.0, 9.0]]])
    scores = torch.tensor([[[0.1, 0.9], [0.2, 0.8]]])
    rules = DetectionRules(score=0.1, nms=0.365, most=2)
    assert detect(boxes, scores, rules).valid.sum() == 2
    assert detect(boxes, scores, rules, scale=2.0).valid.sum() == 1


def test_rows_of_padding_are_zero() -> None:
    found = detect(BOXES, SCORES, DetectionRules(score=0.1, nms=0.3, most=5))
    assert not found.boxes[0, 3:].any() and not found.scores[0, 3:].any() and not found.labels[0, 3:].any()


def test_no_more_detections_than_the_rules_allow() -> None:
    found = detect(BOXES, SCORES, DetectionRules(score=0.0, nms=0.99, most=2))
    assert found.boxes.shape == (1, 2, 4)
    assert found.labels[0].tolist() == [2, 1] and torch.allclose(found.scores[0], torch.tensor([0.9, 0.7]))


def test_invalid_proposals_are_never_detected() -> None:
    valid = torch.tensor([[True, True, False]])
    found = detect(BOXES, SCORES, DetectionRules(score=0.1, nms=0.3, most=5), valid=valid)
    assert found.labels[0].tolist() == [1, 2, 0, 0, 0]


def test_a_score_at_the_threshold_is_dropped() -> None:
    logits = torch.zeros(1, 1, 2)  # probability 1/2
    model = tiny.detector(classes=1, detection_rules=DetectionRules(score=0.5, nms=0.3, most=5))
    proposals = Proposals(BOXES[:, :1], torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert not model.detect(proposals, logits, torch.zeros(1, 1, 2, 4), *sizes()).valid.any()


def test_each_class_has_its_own_deltas_unnormalised_and_cut_at_the_edge() -> None:
    model = tiny.detector(classes=2, detection_rules=DetectionRules(score=0.1, nms=0.3, most=2))
    deltas = torch.randn(1, 1, 3, 4)
    proposals = Proposals(BOXES[:, 2:], torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool))
    found = model.detect(proposals, torch.tensor([[[0.0, 2.0, 1.0]]]), deltas, *sizes())
    expected = decode(BOXES[:, 2:].expand(1, 2, 4), deltas[:, 0, 1:] * BOX_STD, offset=1.0)
    edge = torch.tensor([95.0, 63.0, 95.0, 63.0])
    assert torch.allclose(found.boxes, torch.minimum(expected.clamp(min=0), edge), atol=1e-4)


def test_a_detector_that_is_right_finds_the_object() -> None:
    target = torch.tensor([[[10.0, 12.0, 50.0, 40.0]]])
    model = tiny.detector(classes=1, detection_rules=DetectionRules(score=0.5, nms=0.3, most=3))
    deltas = torch.zeros(1, 3, 2, 4)
    deltas[:, :, 1] = encode(BOXES, target.expand(1, 3, 4), offset=1.0) / BOX_STD
    proposals = Proposals(BOXES, torch.ones(1, 3), torch.ones(1, 3, dtype=torch.bool))
    found = model.detect(proposals, torch.tensor([0.0, 5.0]).expand(1, 3, 2), deltas, *sizes())
    assert found.valid.sum() == 1
    assert torch.allclose(found.boxes[0, 0], target[0, 0], atol=1e-3)


# --- the whole ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("offset", "roi_op"), [(1.0, "pool"), (0.0, "align")])
def test_forward_keeps_images_apart(offset: float, roi_op: str) -> None:
    model, batch = tiny.detector(offset=offset, roi_op=roi_op).eval(), tiny.batch()
    with torch.no_grad():
        together = model(batch.images, batch.image_size, batch.scale)
        alone = model(batch.images[1:], batch.image_size[1:], batch.scale[1:])
    assert together.valid.any()
    for both, one in zip(together, alone, strict=True):
        assert torch.allclose(both[1:].float(), one.float(), atol=1e-4)


def test_forward_does_not_see_what_is_beside_the_picture() -> None:
    model, batch = tiny.detector().eval(), tiny.batch()
    padded = tiny.pad(batch, height=32, width=48)
    with torch.no_grad():
        before = model(batch.images, batch.image_size, batch.scale)
        after = model(padded.images, padded.image_size, padded.scale)
    for a, b in zip(before, after, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-4)


def test_the_stored_names_are_the_parts_and_no_constants() -> None:
    parts = {name.split(".")[0] for name in tiny.detector().state_dict()}
    assert parts == {"backbone", "rpn", "head"}


# --- units of the box layer -----------------------------------------------------------------------------------------


def test_other_units_of_the_box_layer_leave_what_the_model_computes() -> None:
    model, batch = tiny.detector(), tiny.batch()
    arguments = (batch.images, batch.image_size, batch.scale)
    model.head.bbox_pred.weight.data.normal_(std=0.1)
    before = model(*arguments)
    mean = torch.randn(4, 4, generator=torch.Generator().manual_seed(1)) * 0.1
    std = torch.linspace(0.05, 0.5, 16).view(4, 4)
    weight = model.head.bbox_pred.weight.clone()
    model.change_box_units(mean, std)
    assert torch.equal(model.box_mean, mean) and not torch.allclose(weight, model.head.bbox_pred.weight)
    for a, b in zip(before, model(*arguments), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)
    model.change_box_units(torch.zeros(4, 4), BOX_STD.repeat(4, 1))
    torch.testing.assert_close(weight, model.head.bbox_pred.weight)


def test_given_proposals_take_the_place_of_the_rpn() -> None:
    model, batch = tiny.detector(), tiny.batch()
    arguments = (batch.images, batch.image_size, batch.scale)
    features = model.features(batch.images, batch.image_size)
    own = model.propose(model.rpn(features, batch.image_size), batch.image_size, batch.scale, model.proposal_rules)
    assert all(map(torch.equal, model(*arguments, own), model(*arguments)))
    one = Proposals(*(x[:, :1] for x in own))
    assert model(*arguments, one).boxes.shape == (2, 3, 4)
