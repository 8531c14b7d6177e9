"""From detections to the table and the files: what `rcnn test` and `rcnn reeval` share."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from rcnn.config import Recipe
from rcnn.data.open import find_format
from rcnn.data.records import RecordTable
from rcnn.evaluation.coco import evaluate_coco
from rcnn.evaluation.plots import plot_precision_recall
from rcnn.evaluation.results import ImageDetections, ImageInfo, write_comp4, write_detections, write_metrics
from rcnn.evaluation.table import format_table
from rcnn.evaluation.voc import voc_curves, voc_metrics
from rcnn.terminal import printable

IOU = 0.5  # of the VOC metrics


def choose_metric(recipe: Recipe) -> Literal["voc07_11point", "voc_area", "coco"]:
    """The metric asked for, or the one that belongs to the data: COCO's; 11 points for VOC before 2010; the area."""
    if recipe.eval.metric != "auto":
        return recipe.eval.metric
    if find_format(recipe.data.format, recipe.data.root, recipe.data.test) == "coco":
        return "coco"
    year = re.match(r"(\d{4})_", recipe.data.test)
    return "voc07_11point" if year and int(year[1]) < 2010 else "voc_area"


def report(
    recipe: Recipe, dataset: RecordTable, found: Sequence[ImageDetections], classes: tuple[str, ...], out: Path
) -> dict[str, Any]:
    """Evaluate, print the table, write metrics.json and for VOC the precision-recall curves; returns the metrics."""
    out.mkdir(parents=True, exist_ok=True)
    metric, offset = choose_metric(recipe), recipe.model.offset
    if metric == "coco":
        metrics = evaluate_coco(dataset, found, classes, offset=offset)
    else:
        curves = voc_curves(dataset, found, classes, iou=IOU, offset=offset)
        metrics = voc_metrics(curves, metric=metric, iou=IOU)
        if any(curve.num_gt for curve in curves.values()):
            plot_precision_recall(curves, out / "precision_recall.png", title=f"{dataset.name}, {len(dataset)} images")
    write_metrics(out / "metrics.json", metrics)
    print(printable(format_table(metrics)))
    return metrics


def write_found(
    recipe: Recipe, dataset: RecordTable, found: Sequence[ImageDetections], classes: tuple[str, ...], out: Path
) -> None:
    """Write detections.json, and comp4 files when the set is VOC."""
    out.mkdir(parents=True, exist_ok=True)
    offset = recipe.model.offset
    images = [
        ImageInfo(record.image_id, Path(record.path).name, record.height, record.width)
        for record in (dataset[i] for i in range(len(dataset)))
    ]
    write_detections(out / "detections.json", classes, images, found, offset=offset, category_ids=dataset.category_ids)
    if find_format(recipe.data.format, recipe.data.root, recipe.data.test) == "voc":
        folder = out / "comp4"
        folder.mkdir(exist_ok=True)
        write_comp4(folder, recipe.data.test, classes, found, offset=offset)
