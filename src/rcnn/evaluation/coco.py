"""COCO's twelve numbers and the average precision of each class, computed by faster-coco-eval."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rcnn.evaluation.collector import collector_paused
from rcnn.evaluation.ground_truth import GroundTruth, pair_images
from rcnn.evaluation.results import ImageDetections

AREAS = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # cocoapi
MAX_DETECTIONS = (1, 10, 100)  # per image and class
IOU_50, IOU_75 = 0, 5  # positions among the thresholds .50, .55, ... .95
NUMBERS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
DECIMALS = 9  # a width taken from corners is off by 1e-13; rounding gives back the one in the file, to the last bit

Entry = dict[str, Any]  # an annotation or a result as COCO writes it


@collector_paused()
def evaluate_coco(
    ground_truth: Sequence[GroundTruth],
    detections: Sequence[ImageDetections],
    classes: Sequence[str],
    *,
    offset: float,
) -> dict[str, Any]:
    """The content of metrics.json: the twelve numbers, the AP of each class, counts, and why a number is missing.

    Difficult objects of VOC data count as crowds, the only kind that COCO ignores. A number without objects to
    measure it on is None, and `reasons` says so.

    Source: cocodataset.org/#detection-eval; equal to pycocotools.
    """
    images = sorted(pair_images(ground_truth, detections, len(classes)), key=_image_order)
    objects = _numbered(entry for n, (image, _) in enumerate(images) for entry in _objects(image, n, offset))
    results = _numbered(entry for n, (_, found) in enumerate(images) for entry in _results(found, n, offset))
    precision, recall = _accumulate(objects, results, len(images), len(classes))
    return {
        "metric": "coco",
        **_twelve_numbers(precision, recall),
        "AP_by_class": {name: _mean(precision[:, :, k, 0, -1]) for k, name in enumerate(classes)},
        "num_gt": _count_by_class(objects, classes),
        "num_detections": _count_by_class(results, classes),
        "reasons": _reasons(objects),
    }


def _image_order(pair: tuple[GroundTruth, ImageDetections]) -> tuple[bool, int | str]:
    # among equal scores, pycocotools ranks by image id
    image_id = pair[0].image_id
    return isinstance(image_id, str), image_id


def _objects(image: GroundTruth, number: int, offset: float) -> Iterator[Entry]:
    ignored = (image.crowd | image.ignore).tolist()
    columns = _sides(image.boxes, offset), image.labels.tolist(), image.areas.tolist(), ignored
    for box, label, area, crowd in zip(*columns, strict=True):
        yield {"image_id": number, "category_id": label, "bbox": box, "area": area, "iscrowd": int(crowd)}


def _results(found: ImageDetections, number: int, offset: float) -> Iterator[Entry]:
    for box, label, score in zip(
        _sides(found.boxes, offset), found.labels.tolist(), found.scores.tolist(), strict=True
    ):
        area = box[2] * box[3]
        yield {"image_id": number, "category_id": label, "bbox": box, "area": area, "iscrowd": 0, "score": score}


def _sides(boxes: Float[np.ndarray, "n 4"], offset: float) -> list[list[float]]:
    """Boxes as x, y, width, height."""
    boxes = boxes.astype(np.float64)
    boxes[:, 2:] = np.round(boxes[:, 2:] - boxes[:, :2] + offset, DECIMALS)
    return boxes.tolist()


def _numbered(entries: Iterable[Entry]) -> list[Entry]:
    numbered = list(entries)
    for number, entry in enumerate(numbered, start=1):  # the evaluator takes 0 for "not matched"
        entry["id"] = number
    return numbered


def _accumulate(
    objects: list[Entry], results: list[Entry], num_images: int, num_classes: int
) -> tuple[Float[np.ndarray, "T R C A M"], Float[np.ndarray, "T C A M"]]:
    """Precision by IoU threshold, recall, class, area and number of detections; recall alike; -1 without objects."""
    from faster_coco_eval import COCO, COCOeval_faster

    frame = {
        "images": [{"id": number} for number in range(num_images)],
        "categories": [{"id": label, "name": str(label)} for label in range(1, num_classes + 1)],
    }
    truth, found = COCO(frame | {"annotations": objects}), COCO(frame | {"annotations": results})
    evaluator = COCOeval_faster(truth, found, "bbox", print_function=lambda *_: None)
    evaluator.evaluate()
    evaluator.accumulate()
    shape = (len(evaluator.params.iouThrs), len(evaluator.params.recThrs), num_classes, len(AREAS), len(MAX_DETECTIONS))
    precision = np.asarray(evaluator.eval["precision"]).reshape(shape)
    return precision, np.asarray(evaluator.eval["recall"]).reshape(shape[:1] + shape[2:])


def _twelve_numbers(
    precision: Float[np.ndarray, "T R C A M"], recall: Float[np.ndarray, "T C A M"]
) -> dict[str, float | None]:
    sizes = {"s": 1, "m": 2, "l": 3}
    return {
        "AP": _mean(precision[:, :, :, 0, -1]),
        "AP50": _mean(precision[IOU_50, :, :, 0, -1]),
        "AP75": _mean(precision[IOU_75, :, :, 0, -1]),
        **{f"AP{size}": _mean(precision[:, :, :, area, -1]) for size, area in sizes.items()},
        **{f"AR{limit}": _mean(recall[:, :, 0, m]) for m, limit in enumerate(MAX_DETECTIONS)},
        **{f"AR{size}": _mean(recall[:, :, area, -1]) for size, area in sizes.items()},
    }


def _mean(values: np.ndarray) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None


def _count_by_class(entries: list[Entry], classes: Sequence[str]) -> dict[str, int]:
    labels = [entry["category_id"] for entry in entries if not entry["iscrowd"]]
    counts = np.bincount(labels, minlength=len(classes) + 1) if labels else np.zeros(len(classes) + 1, np.int64)
    return dict(zip(classes, counts[1:].tolist(), strict=True))


def _reasons(objects: list[Entry]) -> dict[str, str]:
    """Why a number has no value, by its key."""
    areas = np.array([entry["area"] for entry in objects if not entry["iscrowd"]])
    if not len(areas):
        return dict.fromkeys(NUMBERS, "no ground truth in this set")
    reasons = {}
    for size, (low, high) in AREAS.items():
        if not ((areas >= low) & (areas <= high)).any():
            reasons |= dict.fromkeys((f"AP{size[0]}", f"AR{size[0]}"), f"no {size} objects in this set")
    return reasons
