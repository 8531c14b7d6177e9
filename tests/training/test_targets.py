import pytest
import torch
from torch import Tensor

from rcnn.ops.boxes import covered, decode, iou
from rcnn.structures import AnchorTargets, Batch, Proposals, RoiTargets, RpnOutput
from rcnn.training.targets import assign_anchors, label_anchors, sample_rois
from tests import tiny

RULES = tiny.rules()
BOX_STD = torch.tensor([0.1, 0.1, 0.2, 0.2])
UNITS = {"box_mean": torch.zeros(5, 4), "box_std": BOX_STD.repeat(5, 1)}


def rpn_of(anchors: Tensor, images: int, *, off: tuple[int, ...] = ()) -> RpnOutput:
    """An RPN's output with these anchors (A, 4), those of `off` on no picture."""
    valid = torch.ones(images, len(anchors), dtype=torch.bool)
    valid[:, list(off)] = False
    return RpnOutput(torch.zeros(images, len(anchors)), torch.zeros(images, len(anchors), 4), anchors, valid)


def objects(*boxes: tuple[float, ...], labels: tuple[int, ...] = (), ignored: tuple[int, ...] = ()) -> Batch:
    """One picture with these boxes; labels 1, 2, ... unless given."""
    batch = tiny.batch(objects=(0,), slots=max(1, len(boxes)))
    for i, box in enumerate(boxes):
        batch.boxes[0, i] = torch.tensor(box)
        batch.labels[0, i] = labels[i] if labels else i + 1
        batch.boxes_valid[0, i], batch.boxes_ignored[0, i] = i not in ignored, i in ignored
    return batch


def proposals_of(boxes: Tensor) -> Proposals:
    """All of these boxes (B, P, 4) as proposals."""
    return Proposals(boxes, torch.ones(boxes.shape[:2]), torch.ones(boxes.shape[:2], dtype=torch.bool))


def many(seed: int, count: int = 300, images: int = 2) -> Tensor:
    return torch.stack([tiny.boxes(seed * 10 + i, count) for i in range(images)])


def same(a: AnchorTargets | RoiTargets, b: AnchorTargets | RoiTargets) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


# --- anchors --------------------------------------------------------------------------------------------------------

ANCHORS = torch.tensor(
    [
        [0, 0, 9, 9],  # the first object itself
        [0, 0, 9, 19],  # half of it: neither
        [40, 0, 49, 9],  # touches nothing
        [60, 20, 79, 39],  # twice the second object, and its best
        [-1, 0, 9, 9],  # over the edge
        [0, 1, 9, 9],  # belongs to a cell on padding
    ]
).float()
OBJECTS = ((0, 0, 9, 9), (60, 20, 69, 39))


def test_definition_of_positive_and_negative_anchors() -> None:
    positive, negative, deltas = label_anchors(
        rpn_of(ANCHORS, 1, off=(5,)), objects(*OBJECTS), RULES.anchors, offset=1.0
    )
    assert positive[0].tolist() == [True, False, False, True, False, False]
    assert negative[0].tolist() == [False, False, True, False, False, False]
    assert torch.allclose(decode(ANCHORS, deltas[0], offset=1.0)[[0, 3]], torch.tensor(OBJECTS).float(), atol=1e-4)


def test_a_border_lets_anchors_cross_the_edge() -> None:
    batch, rpn = objects((-1, 0, 9, 9)), rpn_of(ANCHORS, 1)
    for border, trained in ((0.0, False), (1.0, True), (-1.0, True)):
        positive, _, _ = label_anchors(rpn, batch, RULES.anchors._replace(border=border), offset=1.0)
        assert positive[0, 4] == trained


def test_all_anchors_that_tie_for_an_objects_best_are_positive() -> None:
    anchors = torch.tensor([[0, 0, 19, 9], [20, 0, 39, 9], [0, 30, 19, 39]]).float()
    batch = objects((10, 0, 29, 9))  # a third of each of the first two
    positive, negative, _ = label_anchors(rpn_of(anchors, 1), batch, RULES.anchors, offset=1.0)
    assert positive[0].tolist() == [True, True, False] and negative[0].tolist() == [False, False, True]


def test_an_objects_weak_best_is_a_choice() -> None:
    rpn, batch = rpn_of(torch.tensor([[0.0, 0.0, 39.0, 39.0]]), 1), objects((0, 0, 9, 9))
    positive, _, _ = label_anchors(rpn, batch, RULES.anchors, offset=1.0)
    assert positive.all()
    positive, negative, _ = label_anchors(rpn, batch, RULES.anchors._replace(low_best=False), offset=1.0)
    assert negative.all() and not positive.any()


def test_an_object_that_no_anchor_touches_makes_none_positive() -> None:
    positive, negative, _ = label_anchors(rpn_of(ANCHORS[:3], 1), objects((80, 50, 90, 60)), RULES.anchors, offset=1.0)
    assert not positive.any() and negative.all()


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_agreement_with_the_rules_written_as_loops(offset: float) -> None:
    anchors, batch = tiny.boxes(5, 200, least=4) + torch.randn(200, 4).round(), tiny.batch(objects=(4,))
    positive, negative, _ = label_anchors(rpn_of(anchors, 1), batch, RULES.anchors, offset=offset)
    overlaps = iou(anchors[None], batch.boxes, offset=offset)[0]
    inside = [a >= 0 and b >= 0 and c <= 96 - offset and d <= 64 - offset for a, b, c, d in anchors.tolist()]
    best_of_object = overlaps[torch.tensor(inside)].amax(0)
    for i in range(200):
        row = overlaps[i]
        is_positive = bool((row >= 0.7).any() or ((row == best_of_object) & (row > 0)).any())
        assert positive[0, i] == (inside[i] and is_positive)
        assert negative[0, i] == (inside[i] and not is_positive and bool((row < 0.3).all()))


def test_half_of_the_sample_is_positive_at_most_and_background_fills_it() -> None:
    anchors, batch = tiny.boxes(5, 3000), tiny.batch(objects=(4, 1, 0))
    labelled = label_anchors(rpn_of(anchors, 3), batch, RULES.anchors._replace(positive_iou=0.3), offset=1.0)
    targets = assign_anchors(rpn_of(anchors, 3), batch, RULES.anchors._replace(positive_iou=0.3), offset=1.0)
    assert labelled[0].sum(1)[0] > 16
    assert targets.positive.sum(1).tolist() == labelled[0].sum(1).clamp(max=16).tolist()
    assert targets.chosen.sum(1).tolist() == [32, 32, 32]
    assert not (targets.positive & ~labelled[0]).any()
    assert not (targets.chosen & ~targets.positive & ~labelled[1]).any()


def test_a_sample_takes_all_there_is_when_it_is_less() -> None:
    targets = assign_anchors(rpn_of(ANCHORS, 1, off=(5,)), objects(*OBJECTS), RULES.anchors, offset=1.0)
    assert targets.chosen.sum() == 3 and targets.positive.sum() == 2


def test_anchors_in_an_ignored_box_are_neither() -> None:
    batch = objects((0, 0, 49, 49), (60, 20, 69, 39), ignored=(0,))
    positive, negative, _ = label_anchors(rpn_of(ANCHORS, 1), batch, RULES.anchors, offset=1.0)
    assert positive[0].tolist() == [False, False, False, True, False, False]
    assert not negative.any()


# --- RoIs -----------------------------------------------------------------------------------------------------------


def sample(boxes: Tensor, batch: Batch, *, count: int = 16, **changes: object) -> RoiTargets:
    rules = RULES.rois._replace(count=count, **changes)
    return sample_rois(proposals_of(boxes), batch, rules, offset=1.0, **UNITS)


def test_definition_of_sampled_rois() -> None:
    batch = objects((0, 0, 19, 19), (40, 0, 79, 29), labels=(3, 1))
    boxes = torch.tensor([[[0, 0, 19, 24], [40, 0, 79, 9], [50, 40, 60, 50]]]).float()
    targets = sample(boxes, batch, count=8, positive_share=0.5)
    # IoU 0.8 with the first object; 1/3 with the second; none. The objects themselves take part
    rows = {
        tuple(box): (label, ok)
        for box, label, ok in zip(*(x[0].tolist() for x in (*targets[:2], targets.valid)), strict=True)
    }
    assert rows == {
        (0, 0, 19, 24): (3, True),
        (0, 0, 19, 19): (3, True),
        (40, 0, 79, 29): (1, True),
        (40, 0, 79, 9): (0, True),
        (50, 40, 60, 50): (0, True),
    }
    assert targets.labels[0, 3:].tolist() == [0, 0]  # objects first


def test_slots_are_no_more_than_candidates_and_empty_ones_are_invalid() -> None:
    batch, boxes = objects((0, 0, 19, 19)), torch.tensor([[[0, 0, 19, 24], [50, 40, 60, 50]]]).float()
    targets = sample(boxes, batch, count=128)
    assert targets.boxes.shape == (1, 3, 4) and targets.valid.all()
    proposals = proposals_of(boxes)._replace(valid=torch.tensor([[True, False]]))
    targets = sample_rois(proposals, batch, RULES.rois, offset=1.0, **UNITS)
    assert targets.valid[0].tolist() == [True, True, False] and targets.labels[0, 2] == 0


def test_a_quarter_is_objects_at_most_and_background_fills_the_rest() -> None:
    batch = tiny.batch(objects=(4, 2, 0))
    near = batch.boxes.repeat(1, 20, 1) * batch.boxes_valid.repeat(1, 20)[..., None]
    targets = sample(torch.cat([near, many(3, 100, images=3)], 1), batch)
    assert targets.valid.all() and targets.valid.shape == (3, 16)
    assert (targets.labels > 0).sum(1).tolist() == [4, 4, 0]


def test_labels_and_deltas_are_those_of_the_object_overlapped_most() -> None:
    batch = tiny.batch(objects=(4, 3), seed=3)
    targets = sample(many(4), batch, count=200, positive_share=1.0)
    overlaps = iou(targets.boxes, batch.boxes, offset=1.0) * batch.boxes_valid[:, None]
    best, index = overlaps.max(2)
    positive = targets.valid & (best >= 0.5)
    assert positive.sum() > 10
    assert torch.equal(targets.labels, torch.where(positive, batch.labels.gather(1, index), 0))
    found = decode(targets.boxes, targets.deltas * BOX_STD, offset=1.0)
    expected = batch.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    assert torch.allclose(found[positive], expected[positive], atol=1e-2)


def test_background_lies_between_its_two_thresholds() -> None:
    batch = tiny.batch(objects=(4, 3), seed=3)
    targets = sample(many(4), batch, count=200, background_iou=(0.1, 0.4))
    best = (iou(targets.boxes, batch.boxes, offset=1.0) * batch.boxes_valid[:, None]).amax(2)
    background = targets.valid & (targets.labels == 0)
    assert background.any()
    assert best[background].min() >= 0.1 and best[background].max() < 0.4


def test_ignored_boxes_are_never_objects_and_what_lies_in_them_never_background() -> None:
    batch = objects((0, 0, 60, 63), (70, 0, 90, 20), ignored=(0,))
    targets = sample(many(4, images=1), batch, count=301)
    inside = covered(targets.boxes, batch.boxes[:, :1], offset=1.0)[..., 0] >= 0.5
    assert targets.valid.sum() > 20 and inside.sum() > 20
    assert not (inside & targets.valid & (targets.labels == 0)).any()
    assert not (targets.labels == 1).any()


def test_ignoring_can_be_switched_off() -> None:
    batch = objects((0, 0, 60, 63), ignored=(0,))
    targets = sample(many(4, images=1), batch, count=300, ignore_overlap=2.0)
    assert (targets.valid & (targets.labels == 0)).sum() == 300


def test_nothing_at_all_leaves_every_slot_empty_and_finite() -> None:
    batch = objects()
    nothing = Proposals(torch.zeros(1, 20, 4), torch.zeros(1, 20), torch.zeros(1, 20, dtype=torch.bool))
    for offset in (0.0, 1.0):
        targets = sample_rois(nothing, batch, RULES.rois, offset=offset, **UNITS)
        assert not targets.valid.any() and not targets.labels.any()
        assert targets.boxes.isfinite().all() and targets.deltas.isfinite().all()


# --- both: chance and padding ---------------------------------------------------------------------------------------


def both(batch: Batch, boxes: Tensor) -> tuple[AnchorTargets, RoiTargets]:
    rpn = rpn_of(tiny.boxes(5, 500), len(batch.boxes))
    return assign_anchors(rpn, batch, RULES.anchors, offset=1.0), sample(boxes, batch)


def test_the_seed_decides() -> None:
    batch, boxes = tiny.batch(), many(4)
    first, again = both(batch, boxes), both(batch, boxes)
    assert all(map(same, first, again))
    other = both(batch._replace(seed=batch.seed + 1), boxes)
    assert not torch.equal(first[0].chosen, other[0].chosen)
    assert not torch.equal(first[1].boxes, other[1].boxes)


def test_an_image_gets_the_same_sample_in_any_batch() -> None:
    batch, boxes = tiny.batch(objects=(3, 1, 0)), many(4, images=3)
    together = both(batch, boxes)
    for i in range(3):
        alone = both(tiny.rows(batch, i), boxes[i : i + 1])
        for a, b in zip(together, alone, strict=True):
            assert all(torch.equal(x[i : i + 1], y) for x, y in zip(a, b, strict=True))


def test_more_slots_of_ground_truth_change_nothing() -> None:
    batch, boxes = tiny.batch(objects=(3, 0)), many(4)
    for a, b in zip(both(batch, boxes), both(tiny.pad(batch, slots=5), boxes), strict=True):
        assert same(a, b)
