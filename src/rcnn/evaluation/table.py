"""Metrics as a table for the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

COCO_ROWS = {
    "AP": "IoU .50 to .95",
    "AP50": "IoU .50",
    "AP75": "IoU .75",
    "APs": "small objects",
    "APm": "medium objects",
    "APl": "large objects",
    "AR1": "recall with 1 detection per image and class",
    "AR10": "recall with 10",
    "AR100": "recall with 100",
    "ARs": "recall of small objects",
    "ARm": "recall of medium objects",
    "ARl": "recall of large objects",
}
VOC_NAMES = {"voc07_11point": "VOC 2007, 11 points", "voc_area": "VOC, area under the curve"}
MISSING = "-"


def format_table(metrics: Mapping[str, Any]) -> str:
    """The content of a metrics.json, VOC's or COCO's, as aligned text; what has no value is a dash and a reason."""
    if metrics["metric"] == "coco":
        return _coco_numbers(metrics) + "\n\n" + _class_table(metrics, metrics["AP_by_class"], metrics["AP"])
    title = f"{VOC_NAMES[metrics['metric']]}, IoU {metrics['iou']:g}"
    return title + "\n" + _class_table(metrics, metrics["AP"], metrics["mAP"])


def format_recall(metrics: Mapping[str, Any]) -> str:
    """What `evaluate_recall` returns, a row per size of the box; what has no value is a dash and a reason."""
    points = [f"{point:.2f}".removeprefix("0") for point in metrics["iou"]]
    rows = [["side", "proposals", "ground truths", "AR", *points, ""]]
    for name, values in metrics["bins"].items():
        numbers = [_number(value) for value in (values["AR"], *values["recall"])]
        note = "" if values["num_gt"] else "no ground truth"
        rows.append([name, _percentage(values["share"]), _count(values["num_gt"]), *numbers, note])
    title = (
        f"recall of {metrics['average_proposals']:.1f} proposals per image, by the side of the box in pixels and by IoU"
    )
    return title + "\n" + _align(rows, right=range(1, len(rows[0]) - 1))


def _coco_numbers(metrics: Mapping[str, Any]) -> str:
    reasons = metrics.get("reasons", {})
    rows = [(key, _number(metrics[key]), reasons.get(key, text)) for key, text in COCO_ROWS.items()]
    return _align(rows, right=(1,))


def _class_table(metrics: Mapping[str, Any], precisions: Mapping[str, float | None], mean: float | None) -> str:
    objects, found = metrics.get("num_gt", {}), metrics.get("num_detections", {})
    rows = [("class", "AP", "ground truths", "detections", "")]
    for name, value in precisions.items():
        count = objects.get(name)
        note = "no ground truth" if value is None else "nothing found" if found.get(name) == 0 else ""
        rows.append((name, _number(value), _count(count), _count(found.get(name)), note))
    left_out = sum(value is None for value in precisions.values())
    note = f"over {len(precisions) - left_out} of {len(precisions)} classes" if left_out else ""
    rows.append(("mean", _number(mean), _total(objects), _total(found), note))
    return _align(rows, right=(1, 2, 3))


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.4f}"


def _percentage(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"


def _count(value: int | None) -> str:
    return MISSING if value is None else str(value)


def _total(counts: Mapping[str, int]) -> str:
    return str(sum(counts.values())) if counts else MISSING


def _align(rows: Sequence[Sequence[str]], right: Sequence[int]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
