"""How much of the ground truth a set of proposals covers, whatever the classes."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from rcnn.evaluation.ground_truth import GroundTruth
from rcnn.evaluation.results import first_few

BINS = ("0-25", "25-50", "50-100", "100-200", "200-300", "300-inf")
SMALLEST_AREA = np.array([0, 25, 50, 100, 200, 300]) ** 2
IOU_POINTS = np.arange(0.5, 0.95 + 1e-5, 0.05)  # mx-rcnn: 0.6000000000000001 is meant to be such


@runtime_checkable
class ImageProposals(Protocol):
    """The proposals of one image."""

    @property
    def image_id(self) -> str | int:
        """That of an image of the set."""
        ...

    @property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """In original pixels, by the `offset` of the call."""
        ...


def evaluate_recall(
    ground_truth: Sequence[GroundTruth],
    proposals: Sequence[ImageProposals | np.ndarray],
    *,
    offset: float,
) -> dict[str, Any]:
    """Share of the proposals, average recall and recall at IoU .50 to .95, of all boxes and by the size of the box.

    Ground truth and proposals are matched one to one, the pair with the largest overlap first. Each bin is matched by
    itself: its ground truth with all the proposals. Ignored ground truth is left out.

    Args:
        proposals: found by their image id, an image without an entry has none; or an (n, 4) array per image in order.
        offset: of the boxes on both sides.

    Returns:
        Counts of the set and `bins`: "all" and those of `BINS` (side of a square of the same area, in pixels), each
        with `share`, `num_gt`, `AR` and `recall`; None where there is nothing to take a share of.

    Raises:
        ValueError: if there is no image, or proposals are not of the set or cannot be boxes.

    Source: Hosang et al., What Makes for Effective Detection Proposals? (2015), 4; mx-rcnn, IMDB.evaluate_recall.
    """
    counts = np.zeros(len(BINS), np.int64)
    matched: list[list[np.ndarray]] = [[] for _ in range(1 + len(BINS))]
    for image, boxes in _pair(ground_truth, proposals):
        objects = image.boxes[~image.ignore].astype(np.float64)
        counts += np.bincount(_bin(boxes, offset), minlength=len(BINS))
        overlaps = _overlaps(objects, boxes, offset)
        for place, inside in enumerate(_members(_bin(objects, offset))):
            matched[place].append(match_one_to_one(overlaps[inside]))
    total = int(counts.sum())
    rows = zip(("all", *BINS), (total, *counts.tolist()), matched, strict=True)
    return {
        "metric": "proposal_recall",
        "num_images": len(ground_truth),
        "num_proposals": total,
        "average_proposals": total / len(ground_truth),
        "iou": [round(float(point), 2) for point in IOU_POINTS],
        "bins": {name: _summary(count, total, np.concatenate(parts)) for name, count, parts in rows},
    }


def match_one_to_one(overlaps: Float64[np.ndarray, "g p"]) -> Float64[np.ndarray, "g"]:
    """Overlap of each ground truth with its proposal: the largest overlap makes a pair and both are gone, and again.

    A ground truth for which no overlapping proposal is left has 0. Of equal overlaps the first ground truth wins, and
    of its proposals the first.
    """
    left, matched = overlaps.copy(), np.zeros(len(overlaps))
    if left.size == 0:
        return matched
    best_box = left.argmax(1)
    best = left[np.arange(len(left)), best_box]
    while best.max() > 0:
        found = best.argmax()
        matched[found] = best[found]
        box = best_box[found]
        left[found] = 0
        left[:, box] = 0
        stale = np.flatnonzero(best_box == box)  # the others still have their best proposal
        best_box[stale] = left[stale].argmax(1)
        best[stale] = left[stale, best_box[stale]]
    return matched


def _summary(count: int, total: int, matched: Float64[np.ndarray, "n"]) -> dict[str, Any]:
    share = count / total if total else None
    if len(matched) == 0:
        return {"share": share, "num_gt": 0, "AR": None, "recall": [None] * len(IOU_POINTS)}
    recall = (matched[:, None] >= IOU_POINTS).mean(0)
    return {"share": share, "num_gt": len(matched), "AR": float(recall.mean()), "recall": recall.tolist()}


def _members(bins: Int[np.ndarray, "n"]) -> Iterator[Bool[np.ndarray, "n"]]:
    yield np.ones(len(bins), np.bool_)
    for place in range(len(BINS)):
        yield bins == place


def _bin(boxes: Float64[np.ndarray, "n 4"], offset: float) -> Int[np.ndarray, "n"]:
    return np.searchsorted(SMALLEST_AREA, _area(boxes, offset), side="right") - 1


def _area(boxes: Float64[np.ndarray, "n 4"], offset: float) -> Float64[np.ndarray, "n"]:
    return (boxes[:, 2:] - boxes[:, :2] + offset).clip(min=0).prod(1)


def _overlaps(
    objects: Float64[np.ndarray, "g 4"], boxes: Float64[np.ndarray, "p 4"], offset: float
) -> Float64[np.ndarray, "g p"]:
    # a plane per coordinate: faster than a last axis of two
    x1, y1, x2, y2 = objects.T[:, :, None]
    u1, v1, u2, v2 = np.ascontiguousarray(boxes.T)
    width = (np.minimum(x2, u2) - np.maximum(x1, u1) + offset).clip(min=0)
    height = (np.minimum(y2, v2) - np.maximum(y1, v1) + offset).clip(min=0)
    shared = width * height
    return shared / np.maximum(_area(objects, offset)[:, None] + _area(boxes, offset) - shared, 1e-12)


def _pair(
    ground_truth: Sequence[GroundTruth], proposals: Sequence[ImageProposals | np.ndarray]
) -> Iterator[tuple[GroundTruth, Float64[np.ndarray, "_ 4"]]]:
    if not len(ground_truth):
        raise ValueError("the set to evaluate on has no images; choose another with --data.test")
    by_id = _boxes_by_id(ground_truth, proposals)
    for image in ground_truth:
        boxes = by_id.pop(image.image_id, None)
        yield image, np.zeros((0, 4)) if boxes is None else _checked(image.image_id, boxes)
    if by_id:
        known = first_few(image.image_id for image in ground_truth)
        raise ValueError(
            f"proposals: image {next(iter(by_id))!r} is not in the set ({known}); evaluate on the set the proposals "
            f"were made on (--data.test)"
        )


def _boxes_by_id(
    ground_truth: Sequence[GroundTruth], proposals: Sequence[ImageProposals | np.ndarray]
) -> dict[str | int, np.ndarray]:
    arrays = sum(isinstance(entry, np.ndarray) for entry in proposals)
    if arrays and not (arrays == len(proposals) == len(ground_truth)):
        raise ValueError(
            f"proposals: {arrays} arrays among {len(proposals)} entries for {len(ground_truth)} images; give an array "
            f"for each image in order, or entries with an image id"
        )
    by_id: dict[str | int, np.ndarray] = {}
    for place, entry in enumerate(proposals):
        if isinstance(entry, np.ndarray):
            image_id, boxes = ground_truth[place].image_id, entry
        else:
            image_id, boxes = entry.image_id, entry.boxes
        if image_id in by_id:
            raise ValueError(f"proposals: image {image_id!r} comes twice; join its boxes into one entry")
        by_id[image_id] = boxes
    return by_id


def _checked(image_id: str | int, boxes: np.ndarray) -> Float64[np.ndarray, "n 4"]:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not np.isfinite(boxes).all():
        raise ValueError(
            f"proposals: image {image_id!r} has boxes of shape {boxes.shape} or not finite; expected finite numbers "
            f"x1, y1, x2, y2 per row; the network's weights may be broken"
        )
    return boxes.astype(np.float64)
