"""What an evaluator must know of a set's images, and how detections find their image."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Int

from rcnn.evaluation.entries import is_number
from rcnn.evaluation.results import ImageDetections, check_detections, first_few


@runtime_checkable
class GroundTruth(Protocol):
    """The objects of one image; a `Record` of the data layer is one, and so is an `AnnotatedImage`."""

    @property
    def image_id(self) -> str | int:
        """Unique in its set."""
        ...

    @property
    def boxes(self) -> Float[np.ndarray, "n 4"]:
        """In original pixels, by the `offset` that goes with every call."""
        ...

    @property
    def labels(self) -> Int[np.ndarray, "n"]:
        """1..C."""
        ...

    @property
    def ignore(self) -> Bool[np.ndarray, "n"]:
        """Difficult or crowd: neither to be found nor wrong to find."""
        ...

    @property
    def crowd(self) -> Bool[np.ndarray, "n"]:
        """One box around many objects (COCO); any number of detections may lie in it."""
        ...

    @property
    def areas(self) -> Float[np.ndarray, "n"]:
        """Area by which COCO calls an object small, medium or large: that of the mask where there is one."""
        ...


class AnnotatedImage(NamedTuple):
    """The objects of one image as the annotation file has them, in double precision."""

    image_id: str | int
    boxes: Float[np.ndarray, "n 4"]
    labels: Int[np.ndarray, "n"]
    ignore: Bool[np.ndarray, "n"]
    crowd: Bool[np.ndarray, "n"]
    areas: Float[np.ndarray, "n"]


def read_coco_ground_truth(path: str | Path, classes: Sequence[str], *, offset: float) -> list[AnnotatedImage]:
    """The images of a COCO annotation file, nothing clipped, dropped or rounded, as the COCO evaluation wants it.

    Args:
        classes: names in the order of the labels; objects of other categories are left out.

    Raises:
        ValueError: naming the file, the annotation and what is wrong with it.
    """
    document = _load_annotations(path)
    try:
        return _annotated_images(path, document, classes, offset)
    except (TypeError, LookupError, OverflowError) as error:  # an entry that is no object, or lacks a field
        raise ValueError(
            f"{path}: an entry of images, annotations or categories is not as COCO has it ({error!r:.200}); correct it"
        ) from error


def _annotated_images(
    path: str | Path, document: dict[str, Any], classes: Sequence[str], offset: float
) -> list[AnnotatedImage]:
    label_of = _labels_by_category(path, document["categories"], classes)
    rows: dict[int, list[tuple[list[float], int, bool, float]]] = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        if annotation["image_id"] not in rows:
            raise ValueError(
                f"{path}: annotation {annotation['id']} belongs to image {annotation['image_id']}, which is not in "
                f"'images'; add the image or remove the annotation"
            )
        if annotation["category_id"] in label_of:
            rows[annotation["image_id"]].append(_read_object(path, annotation, label_of))
    return [_annotated_image(image_id, objects, offset) for image_id, objects in rows.items()]


def pair_images(
    ground_truth: Sequence[GroundTruth], detections: Sequence[ImageDetections], num_classes: int
) -> Iterator[tuple[GroundTruth, ImageDetections]]:
    """Each image of the set, in order, with its detections; an image without an entry has none.

    Raises:
        ValueError: if there is no image, or one comes twice, is not of the set, or holds a label, score or box that
            cannot be.
    """
    if not len(ground_truth):
        raise ValueError("the set to evaluate on has no images; choose another with --data.test")
    by_id = _detections_by_id(detections, num_classes)
    for image in ground_truth:
        yield image, by_id.pop(image.image_id, None) or no_detections(image.image_id)
    if by_id:
        known = first_few(image.image_id for image in ground_truth)
        raise ValueError(
            f"detections: image {next(iter(by_id))!r} is not in the set ({known}); evaluate on the set the detections "
            f"were made on (--data.test)"
        )


def no_detections(image_id: str | int) -> ImageDetections:
    """The entry of an image in which nothing was found."""
    return ImageDetections(image_id, np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def _detections_by_id(detections: Sequence[ImageDetections], num_classes: int) -> dict[str | int, ImageDetections]:
    by_id: dict[str | int, ImageDetections] = {}
    for image in detections:
        if image.image_id in by_id:
            raise ValueError(f"detections: image {image.image_id!r} comes twice; join its boxes into one entry")
        check_detections(image, num_classes)
        by_id[image.image_id] = image
    return by_id


def _load_annotations(path: str | Path) -> dict[str, Any]:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; expected COCO annotations")
    try:
        document = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}; get the annotation file again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{path}: no list '{key}'; expected COCO annotations with images, annotations, categories")
    return document


def _labels_by_category(path: str | Path, categories: list[dict[str, Any]], classes: Sequence[str]) -> dict[int, int]:
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    found = {category["id"]: label_of[category["name"]] for category in categories if category["name"] in label_of}
    if not found:
        raise ValueError(
            f"{path}: none of the classes ({first_few(classes)}) is among its categories "
            f"({first_few(category['name'] for category in categories)}); "
            f"names must be equal letter by letter (--data.classes)"
        )
    return found


def _read_object(
    path: str | Path, annotation: dict[str, Any], label_of: dict[int, int]
) -> tuple[list[float], int, bool, float]:
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ValueError(f"{path}: annotation {annotation.get('id')}: bbox {box!r} is not [x, y, width, height]")
    crowd = bool(annotation.get("iscrowd", 0))
    return box, label_of[annotation["category_id"]], crowd, _area(path, annotation, box[2] * box[3])


def _area(path: str | Path, annotation: dict[str, Any], otherwise: float) -> float:
    area = annotation.get("area", otherwise)
    if not is_number(area):
        raise ValueError(f"{path}: annotation {annotation.get('id')}: area {area!r} is not a number")
    return float(area)


def _annotated_image(
    image_id: int, objects: list[tuple[list[float], int, bool, float]], offset: float
) -> AnnotatedImage:
    boxes = np.array([box for box, *_ in objects], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] - offset
    crowd = np.array([crowd for _, _, crowd, _ in objects], np.bool_)
    labels = np.array([label for _, label, _, _ in objects], np.int64)
    return AnnotatedImage(image_id, boxes, labels, crowd, crowd, np.array([area for *_, area in objects], np.float64))
