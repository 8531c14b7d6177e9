"""Evaluating and keeping the detections of a whole set, ours and pycocotools's."""

import atexit
import contextlib
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64

from rcnn.benchmark.network import SEED
from rcnn.benchmark.settings import CLASSES, DETECTIONS, Settings
from rcnn.benchmark.task import Task
from rcnn.evaluation.coco import NUMBERS, evaluate_coco
from rcnn.evaluation.ground_truth import AnnotatedImage
from rcnn.evaluation.results import DetectionFile, ImageDetections, ImageInfo, read_detections, write_detections
from rcnn.evaluation.voc import evaluate_voc

MOST_OBJECTS = 14  # of an image; COCO has seven in the mean
HEIGHT, WIDTH = 480, 640
OFFSET = 0.0
FILE = "detections.json"


class MadeSet(NamedTuple):
    """What a detector might have found in a set, and what was there."""

    truth: list[AnnotatedImage]
    found: list[ImageDetections]


def open_ours(settings: Settings) -> dict[str, Task]:
    """Both metrics, and what `rcnn test` and `rcnn reeval` do around them."""
    made = make_set(settings.images)
    ids = [image.image_id for image in made.truth]
    images = [ImageInfo(image_id, f"{image_id}.jpg", HEIGHT, WIDTH) for image_id in ids]
    folder = tempfile.TemporaryDirectory(prefix="rcnn-bench-")
    atexit.register(folder.cleanup)

    def write() -> None:
        write_detections(Path(folder.name, FILE), CLASSES, images, made.found, offset=OFFSET)

    def read() -> DetectionFile:
        return read_detections(Path(folder.name, FILE), offset=OFFSET, classes=CLASSES, image_ids=ids)

    write()
    about = ("float64", torch.device("cpu"), settings.images)
    return {
        "COCO": Task(lambda: evaluate_coco(*made, CLASSES, offset=OFFSET), *about),
        "VOC": Task(lambda: evaluate_voc(*made, CLASSES, metric="voc07_11point", offset=OFFSET), *about),
        f"write {FILE}": Task(write, *about),
        f"read {FILE}": Task(read, *about),
    }


def open_pycocotools(settings: Settings) -> dict[str, Task]:
    """Its evaluation, from annotations and results that are in memory already."""
    made = make_set(settings.images)
    truth = {
        "images": [{"id": image.image_id, "height": HEIGHT, "width": WIDTH} for image in made.truth],
        "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)],
        "annotations": [entry | {"id": number} for number, entry in enumerate(_objects(made.truth), start=1)],
    }
    results = [entry for image in made.found for entry in _results(image)]
    about = ("float64", torch.device("cpu"), settings.images)
    return {"COCO": Task(lambda: _evaluate_as_pycocotools(truth, results), *about)}


def make_set(images: int) -> MadeSet:
    """Objects of all sizes, and detections: most of them on an object, shifted, some of another class."""
    random = np.random.default_rng(SEED)
    made = MadeSet([], [])
    for image_id in range(1, images + 1):
        objects = _boxes(random, int(random.integers(MOST_OBJECTS + 1)))
        labels = random.integers(1, len(CLASSES) + 1, len(objects))
        none = np.zeros(len(objects), np.bool_)
        areas = (objects[:, 2:] - objects[:, :2]).prod(1)
        made.truth.append(AnnotatedImage(image_id, objects, labels, none, none, areas))
        made.found.append(_find(random, image_id, objects, labels))
    return made


def _boxes(random: np.random.Generator, count: int) -> Float64[np.ndarray, "n 4"]:
    size, canvas = np.exp(random.uniform(2, 5.5, (count, 2))), np.array([WIDTH, HEIGHT])
    corner = random.random((count, 2)) * (canvas - size)
    return np.concatenate([corner, corner + size], axis=1)


def _find(
    random: np.random.Generator, image_id: int, objects: Float64[np.ndarray, "n 4"], labels: np.ndarray
) -> ImageDetections:
    boxes, guessed = _boxes(random, DETECTIONS), random.integers(1, len(CLASSES) + 1, DETECTIONS)
    if len(objects):
        of = random.integers(len(objects), size=DETECTIONS)
        near = random.random(DETECTIONS) < 0.7
        sides = np.tile(objects[of, 2:] - objects[of, :2], 2)
        boxes[near] = (objects[of] + 0.1 * sides * random.standard_normal((DETECTIONS, 4)))[near]
        boxes[:, 2:] = np.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        guessed = np.where(near, labels[of], guessed)
    return ImageDetections(image_id, boxes.astype(np.float32), random.random(DETECTIONS, np.float32), guessed)


def _objects(truth: list[AnnotatedImage]) -> Iterator[dict[str, Any]]:
    for image in truth:
        for box, label, area in zip(_sides(image.boxes), image.labels.tolist(), image.areas.tolist(), strict=True):
            yield {"image_id": image.image_id, "category_id": label, "bbox": box, "area": area, "iscrowd": 0}


def _results(image: ImageDetections) -> Iterator[dict[str, Any]]:
    for box, label, score in zip(_sides(image.boxes), image.labels.tolist(), image.scores.tolist(), strict=True):
        yield {"image_id": image.image_id, "category_id": label, "bbox": box, "score": score}


def _sides(boxes: np.ndarray) -> list[list[float]]:
    return np.concatenate([boxes[:, :2], boxes[:, 2:].astype(np.float64) - boxes[:, :2]], axis=1).tolist()


def _evaluate_as_pycocotools(truth: Any, results: Any) -> dict[str, float]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # it tells every step
        annotated = COCO()
        annotated.dataset = truth
        annotated.createIndex()
        evaluator = COCOeval(annotated, annotated.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return dict(zip(NUMBERS, map(float, evaluator.stats), strict=True))
