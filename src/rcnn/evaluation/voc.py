"""Average precision as Pascal VOC defines it: the 11 points of 2007, or the area since 2010."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rcnn.evaluation.ground_truth import GroundTruth, pair_images
from rcnn.evaluation.results import ImageDetections

VocMetric = Literal["voc07_11point", "voc_area"]

RECALL_POINTS = np.arange(0.0, 1.1, 0.1)  # VOC2007 devkit and mx-rcnn: 0.30000000000000004 is meant to be such


class Curve(NamedTuple):
    """Precision and recall of a class as the score threshold falls; a point per detection that counts."""

    recall: Float[np.ndarray, "n"]
    precision: Float[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    num_gt: int  # objects to be found: those that are not ignored
    num_detections: int  # those that fell on ignored objects too


class _Matches(NamedTuple):
    """Every detection of the set with the object of its class and image that it overlaps most."""

    labels: Int[np.ndarray, "n"]
    scores: Float[np.ndarray, "n"]
    overlap: Float[np.ndarray, "n"]  # -1 where the image has no object of the class
    object_index: Int[np.ndarray, "n"]  # position among all objects of the set
    object_labels: Int[np.ndarray, "m"]
    object_ignored: Bool[np.ndarray, "m"]


def evaluate_voc(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    metric: VocMetric,
    iou: float = 0.5,
    offset: float = 1.0,
) -> dict[str, Any]:
    """The content of metrics.json: the average precision of each class and the mean over the classes that occur.

    Args:
        iou: a detection must overlap an object by more than this.
        offset: of the boxes on both sides; VOC's own are inclusive (1).

    Source: Everingham et al., The Pascal Visual Object Classes Challenge (2010), 4.2; VOC2007 and VOC2012 devkits.
    """
    return voc_metrics(voc_curves(ground_truth, detections, classes, iou=iou, offset=offset), metric=metric, iou=iou)


def voc_curves(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    iou: float = 0.5,
    offset: float = 1.0,
) -> dict[str, Curve]:
    """The precision-recall curve of each class.

    A detection belongs to the object it overlaps most. The first one (by score, then by order) finds it, later ones
    are wrong; those that belong to an ignored object do not count.
    """
    matches = _match(ground_truth, detections, len(classes), offset)
    return {name: _curve(matches, label, iou) for label, name in enumerate(classes, start=1)}


def voc_metrics(curves: Mapping[str, Curve], *, metric: VocMetric, iou: float) -> dict[str, Any]:
    """The content of metrics.json; a class without objects has no average precision: None, and not in the mean."""
    average = {"voc07_11point": average_precision_11_points, "voc_area": average_precision_area}[metric]
    precisions = {
        name: average(curve.recall, curve.precision) if curve.num_gt else None for name, curve in curves.items()
    }
    present = [value for value in precisions.values() if value is not None]
    return {
        "metric": metric,
        "iou": iou,
        "mAP": sum(present) / len(present) if present else None,
        "AP": precisions,
        "num_gt": {name: curve.num_gt for name, curve in curves.items()},
        "num_detections": {name: curve.num_detections for name, curve in curves.items()},
    }


def average_precision_11_points(recall: Float[np.ndarray, "n"], precision: Float[np.ndarray, "n"]) -> float:
    """Mean over recall 0, 0.1, ..., 1 of the best precision at that recall or beyond."""
    if len(recall) == 0:
        return 0.0
    first = np.searchsorted(recall, RECALL_POINTS)
    best = np.append(_best_from_here(precision), 0.0)
    return float(best[first].mean())


def average_precision_area(recall: Float[np.ndarray, "n"], precision: Float[np.ndarray, "n"]) -> float:
    """Area under the curve, precision being the best at that recall or beyond."""
    steps = np.diff(recall, prepend=0.0)
    return float((steps * _best_from_here(precision)).sum())


def _best_from_here(precision: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    return np.maximum.accumulate(precision[::-1])[::-1]


def _match(
    ground_truth: Sequence[GroundTruth], detections: Sequence[ImageDetections], num_classes: int, offset: float
) -> _Matches:
    num_objects = 0
    parts: list[tuple[np.ndarray, ...]] = []
    for image, found in pair_images(ground_truth, detections, num_classes):
        overlap, best = _best_object(image, found, offset)
        parts.append((found.labels, found.scores, overlap, best + num_objects, image.labels, image.ignore))
        num_objects += len(image.labels)
    return _Matches(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _best_object(
    image: GroundTruth, found: ImageDetections, offset: float
) -> tuple[Float[np.ndarray, "n"], Int[np.ndarray, "n"]]:
    """Overlap and position of the object of its class that each detection overlaps most; -1 and 0 without one."""
    if len(image.labels) == 0 or len(found.labels) == 0:
        return np.full(len(found.labels), -1.0), np.zeros(len(found.labels), np.int64)
    overlap = _iou(found.boxes.astype(np.float64), image.boxes.astype(np.float64), offset)
    overlap[found.labels[:, None] != image.labels[None, :]] = -1.0
    best = overlap.argmax(1)
    return overlap[np.arange(len(best)), best], best


def _iou(a: Float[np.ndarray, "n 4"], b: Float[np.ndarray, "m 4"], offset: float) -> Float[np.ndarray, "n m"]:
    # not ops.boxes.iou: evaluation stands alone, and in double precision
    corner = np.maximum(a[:, None, :2], b[None, :, :2])
    size = (np.minimum(a[:, None, 2:], b[None, :, 2:]) - corner + offset).clip(min=0)
    shared = size[..., 0] * size[..., 1]
    return shared / np.maximum(_area(a, offset)[:, None] + _area(b, offset) - shared, 1e-12)


def _area(boxes: Float[np.ndarray, "n 4"], offset: float) -> Float[np.ndarray, "n"]:
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def _curve(matches: _Matches, label: int, iou: float) -> Curve:
    num_gt = int(((matches.object_labels == label) & ~matches.object_ignored).sum())
    mine = np.flatnonzero(matches.labels == label)
    order = mine[np.argsort(-matches.scores[mine], kind="stable")]
    hit = matches.overlap[order] > iou
    counts = ~hit
    counts[hit] = ~matches.object_ignored[matches.object_index[order][hit]]
    order, hit = order[counts], hit[counts]
    correct = _first_of_each(matches.object_index[order], hit).cumsum()
    return Curve(
        recall=correct / max(num_gt, 1),
        precision=correct / np.arange(1, len(order) + 1),
        scores=matches.scores[order],
        num_gt=num_gt,
        num_detections=len(mine),
    )


def _first_of_each(values: Int[np.ndarray, "n"], counts: Bool[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    """True at the first place among those that count where a value appears."""
    places = np.flatnonzero(counts)
    first = np.zeros(len(values), np.bool_)
    first[places[np.unique(values[places], return_index=True)[1]]] = True
    return first
