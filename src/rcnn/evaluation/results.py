"""Detections of a whole set, and the two kinds of files that keep them: detections.json and VOC's comp4 files."""

import json
import logging
import math
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from jaxtyping import Float, Int

from rcnn.evaluation.collector import collector_paused
from rcnn.evaluation.entries import are_ids, is_id, is_number

logger = logging.getLogger("rcnn.evaluation")

COMP4_PREFIX = "comp4_det_"  # VOC2007 devkit, "detection, trained on the supplied data"


class ImageDetections(NamedTuple):
    """What was found in one image, in any order; boxes in original pixels."""

    image_id: str | int
    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]  # 1..C


class ImageInfo(NamedTuple):
    """An image that was looked at, whether or not something was found."""

    image_id: str | int
    file_name: str
    height: int
    width: int


class DetectionFile(NamedTuple):
    """What a detections.json holds; one entry an image, empty ones too."""

    classes: tuple[str, ...]
    detections: list[ImageDetections]


class _Row(NamedTuple):
    image_id: str | int
    label: int
    score: float
    box: tuple[float, float, float, float]


def write_detections(
    path: str | Path,
    classes: Sequence[str],
    images: Iterable[ImageInfo],
    detections: Iterable[ImageDetections],
    *,
    offset: float,
    category_ids: Sequence[int] | None = None,
) -> None:
    """Write detections.json: COCO results, with the classes and images they are about.

    Nine digits are kept, which is all a float32 has. The file appears when it is whole.

    Args:
        category_ids: the data set's own number for each class (COCO's have gaps); 1..C if None.
    """
    ids = list(category_ids) if category_ids is not None else list(range(1, len(classes) + 1))
    with _whole_file(path) as file:
        file.write(f'{{"classes": {json.dumps(list(classes))},\n"category_ids": {json.dumps(ids)},\n"images": [\n')
        file.write(",\n".join(json.dumps(_image_entry(image)) for image in images))
        file.write('\n],\n"detections": [\n')
        file.writelines(_separated(_detection_lines(detections, ids, offset)))
        file.write("\n]}\n")


@collector_paused()
def read_detections(
    path: str | Path,
    *,
    offset: float,
    classes: Sequence[str] | None = None,
    category_ids: Sequence[int] | None = None,
    image_ids: Iterable[str | int] | None = None,
) -> DetectionFile:
    """Read detections.json, or a bare COCO result list where `classes` and `category_ids` are given.

    Args:
        classes: names in the order the labels shall have; as in the file if None.
        category_ids: the data set's own number for each of `classes`; needed for a bare list only.
        image_ids: the images of the data set; detections elsewhere are an error, images not mentioned have none.

    Raises:
        ValueError: naming the file, the entry, what is wrong with it and the way out.
    """
    document = _load_json(path)
    if isinstance(document, list):
        document = _wrap_result_list(path, document, classes, category_ids)
    categories = _read_categories(path, document)
    names = tuple(categories.values() if classes is None else classes)
    labels = {name: label for label, name in enumerate(names, start=1)}
    known = _read_images(path, document, image_ids)
    entries = enumerate(document["detections"])
    rows = [_read_row(f"{path}: detections[{n}]", entry, categories, labels, known) for n, entry in entries]
    return DetectionFile(names, _group(rows, known, offset))


def write_comp4(
    folder: str | Path,
    image_set: str,
    classes: Sequence[str],
    detections: Sequence[ImageDetections],
    *,
    offset: float,
) -> list[Path]:
    """Write a file per class as the VOC devkit reads them: image, score, corners counted from 1, last pixel included.

    Scores and corners keep all that a float32 has, so evaluating the files gives what evaluating the arrays gives.
    """
    lines: dict[int, list[str]] = {label: [] for label in range(1, len(classes) + 1)}
    for image in detections:
        check_detections(image, len(classes))
        corners = image.boxes.astype(np.float64) + (1.0, 1.0, offset, offset)
        for score, label, box in zip(image.scores.tolist(), image.labels.tolist(), corners.tolist(), strict=True):
            lines[label].append(f"{image.image_id} {score:.9f} " + " ".join(f"{value:.6f}" for value in box) + "\n")
    written = []
    for label, name in enumerate(classes, start=1):
        path = Path(folder) / f"{COMP4_PREFIX}{image_set}_{_file_name_part(name)}.txt"
        with _whole_file(path) as file:
            file.writelines(lines[label])
        written.append(path)
    return written


@collector_paused()
def read_comp4(
    folder: str | Path,
    classes: Sequence[str],
    *,
    offset: float,
    image_set: str | None = None,
    image_ids: Iterable[str | int] | None = None,
) -> list[ImageDetections]:
    """Read a folder of comp4 files, ours or another tool's.

    Args:
        image_set: which set's files, where the folder holds those of several.
        image_ids: the images of the data set; detections elsewhere are an error, images not mentioned have none.

    Raises:
        ValueError: naming the file, the line, what is wrong with it and the way out.
    """
    known = _by_name(image_ids) if image_ids is not None else None
    rows: list[_Row] = []
    for label, path in enumerate(_comp4_files(Path(folder), classes, image_set), start=1):
        for number, line in enumerate(_lines(path), start=1):
            if line.strip():
                rows.append(_parse_comp4_line(path, number, line, label, offset, known))
    return _group(rows, known, offset)


def write_metrics(path: str | Path, metrics: Mapping[str, Any]) -> None:
    """Write metrics.json; what has no value is null there."""
    with _whole_file(path) as file:
        json.dump(metrics, file, indent=1, allow_nan=False)
        file.write("\n")


def check_detections(image: ImageDetections, num_classes: int) -> None:
    """Labels must be among the classes, scores and boxes finite.

    Raises:
        ValueError: naming the image and the value.
    """
    labels = image.labels
    if len(labels) and not (labels.min() >= 1 and labels.max() <= num_classes):
        wrong = labels[(labels < 1) | (labels > num_classes)][0]
        raise ValueError(
            f"detections: image {image.image_id!r} has label {wrong}, but there are {num_classes} classes (1 to "
            f"{num_classes}); give all the detector's classes (--data.classes)"
        )
    if not (np.isfinite(image.scores).all() and np.isfinite(image.boxes).all()):
        raise ValueError(
            f"detections: image {image.image_id!r} has a box or score that is not a finite number; "
            f"the detector's weights may be broken"
        )


def first_few(values: Iterable[Any], limit: int = 5) -> str:
    """The first values and how many there are, for a message."""
    every = [str(value) for value in values]
    return ", ".join(every[:limit]) + (f", ... {len(every)} in all" if len(every) > limit else "")


@contextmanager
def _whole_file(path: str | Path) -> Iterator[TextIO]:
    target = Path(path)
    draft = target.with_name(target.name + ".part")
    try:
        draft.unlink(missing_ok=True)
        with draft.open("x", encoding="utf-8") as file:  # x: a link that lies there is not followed
            yield file
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)


def _image_entry(image: ImageInfo) -> dict[str, Any]:
    return {"id": image.image_id, "file_name": image.file_name, "height": image.height, "width": image.width}


def _detection_lines(detections: Iterable[ImageDetections], ids: Sequence[int], offset: float) -> Iterator[str]:
    for image in detections:
        boxes = image.boxes.astype(np.float64)
        boxes[:, 2:] += offset - boxes[:, :2]
        check_detections(image, len(ids))
        name = json.dumps(image.image_id)
        for box, score, label in zip(boxes.tolist(), image.scores.tolist(), image.labels.tolist(), strict=True):
            bbox = ", ".join(f"{value:.9g}" for value in box)
            yield f'{{"image_id": {name}, "category_id": {ids[label - 1]}, "bbox": [{bbox}], "score": {score:.9g}}}'


def _separated(lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield line if number == 0 else ",\n" + line


def _load_json(path: str | Path) -> Any:
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; write it with 'rcnn test'")
    try:
        return json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON: {error}; write it again with 'rcnn test'") from error


def _wrap_result_list(
    path: str | Path, entries: list[Any], classes: Sequence[str] | None, category_ids: Sequence[int] | None
) -> dict[str, Any]:
    if classes is None or category_ids is None:
        raise ValueError(
            f"{path}: a bare list of results does not say what its category ids mean; wrap it as "
            f'{{"classes": [names], "category_ids": [ids], "images": [], "detections": [...]}}'
        )
    return {"classes": list(classes), "category_ids": list(category_ids), "detections": entries}


def _read_categories(path: str | Path, document: Any) -> dict[int, str]:
    """The class name of each category id."""
    if not isinstance(document, dict) or not isinstance(document.get("detections"), list):
        raise ValueError(f"{path}: expected an object with the lists classes, images and detections")
    names = document.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: 'classes' must be a list of different names, not {names!r}")
    ids = document.get("category_ids", list(range(1, len(names) + 1)))
    if not isinstance(ids, list) or {*map(type, ids)} - {int} or not len(set(ids)) == len(ids) == len(names):
        raise ValueError(f"{path}: 'category_ids' must be a different number for each of the {len(names)} classes")
    return dict(zip(ids, names, strict=True))


def _read_images(
    path: str | Path, document: dict[str, Any], image_ids: Iterable[str | int] | None
) -> dict[str, str | int] | None:
    """Every image by its id written out: those of the data set, else those of the file, else None (not known)."""
    images = document.get("images", [])
    if not are_ids(images):
        raise ValueError(f"{path}: 'images' must be a list of ids, or of objects with an id: texts or numbers")
    listed = [image["id"] if isinstance(image, dict) else image for image in images]
    if image_ids is None:
        return _by_name(listed) if listed else None
    known, there = _by_name(image_ids), {str(image_id) for image_id in listed}
    if there and (missing := known.keys() - there):
        logger.warning(
            f"{path} covers {len(known) - len(missing)} of the {len(known)} images of the set; "
            f"the others count as images in which nothing was found"
        )
    return known


def _by_name(image_ids: Iterable[str | int]) -> dict[str, str | int]:
    return {str(image_id): image_id for image_id in image_ids}


def _read_row(
    where: str, entry: Any, categories: dict[int, str], labels: dict[str, int], known: dict[str, str | int] | None
) -> _Row:
    try:
        image_id, category, box, score = entry["image_id"], entry["category_id"], entry["bbox"], entry["score"]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{where}: expected image_id, category_id, bbox and score, found {entry!r}") from error
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ValueError(f"{where}: bbox {box!r} is not [x, y, width, height] in pixels; correct or remove the entry")
    if not is_id(image_id):
        raise ValueError(f"{where}: image_id {image_id!r} is no text or whole number; correct or remove the entry")
    if not is_number(score):
        raise ValueError(f"{where}: score {score!r} is not a number; correct or remove the entry")
    if not isinstance(category, int) or category not in categories:
        raise ValueError(
            f"{where}: category_id {category!r} is none of the file's ({first_few(categories)}); correct or remove it"
        )
    if categories[category] not in labels:
        raise ValueError(
            f"{where}: class {categories[category]!r} is none of the data set's ({first_few(labels)}); "
            f"name all the detector's classes in --data.classes"
        )
    return _Row(_known_image(where, image_id, known), labels[categories[category]], score, tuple(box))


def _known_image(where: str, image_id: str | int, known: dict[str, str | int] | None) -> str | int:
    if known is None:
        return image_id
    found = known.get(str(image_id))
    if found is None:
        raise ValueError(
            f"{where}: image {image_id!r} is not in the set ({first_few(known.values())}); "
            f"evaluate on the set the detections were made on (--data.test)"
        )
    return found


def _group(rows: list[_Row], known: dict[str, str | int] | None, offset: float) -> list[ImageDetections]:
    """Rows by image in their order, each box from x, y, width, height to corners; an entry for every known image."""
    by_image: dict[str | int, list[_Row]] = defaultdict(list, {image: [] for image in (known or {}).values()})
    for row in rows:
        by_image[row.image_id].append(row)
    return [_image_detections(image_id, found, offset) for image_id, found in by_image.items()]


def _image_detections(image_id: str | int, rows: list[_Row], offset: float) -> ImageDetections:
    boxes = np.array([row.box for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2] - offset
    scores = np.array([row.score for row in rows], np.float64)
    return ImageDetections(image_id, boxes, scores, np.array([row.label for row in rows], np.int64))


def _file_name_part(name: str) -> str:
    if re.search(r'[\\/:*?"<>|\0]', name):
        raise ValueError(f'class {name!r}: its name is part of a file name and must not hold any of \\ / : * ? " < > |')
    return name


def _comp4_files(folder: Path, classes: Sequence[str], image_set: str | None) -> list[Path]:
    """The file of each class, in their order."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one with files {COMP4_PREFIX}SET_CLASS.txt")
    prefix = COMP4_PREFIX + (f"{image_set}_" if image_set else "")
    files: dict[str, Path] = {}
    for path in sorted(folder.glob(f"{prefix}*.txt")):
        name = _class_of_file(path, path.stem.removeprefix(prefix), classes, exact=image_set is not None)
        if name in files:
            raise ValueError(
                f"{path}: class {name!r} has another file, {files[name].name}; keep those of one set in the folder"
            )
        files[name] = path
    if missing := [name for name in classes if name not in files]:
        raise ValueError(
            f"{folder}: no file {prefix}{'' if image_set else 'SET_'}{missing[0]}.txt; if nothing was found of this "
            f"class, add an empty one (missing: {first_few(missing)})"
        )
    return [files[name] for name in classes]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}); copy or write the file again") from error


def _class_of_file(path: Path, rest: str, classes: Sequence[str], *, exact: bool) -> str:
    matches = [name for name in classes if rest == name or (not exact and rest.endswith(f"_{name}"))]
    if not matches:
        raise ValueError(
            f"{path}: its name ends in none of the classes ({first_few(classes)}); "
            f"move it away, or name its class in --data.classes"
        )
    return max(matches, key=len)


def _parse_comp4_line(
    path: Path, number: int, line: str, label: int, offset: float, known: dict[str, str | int] | None
) -> _Row:
    where = f"{path}: line {number}"
    fields = line.split()
    try:
        image_id, (score, x1, y1, x2, y2) = fields[0], map(float, fields[1:])
    except ValueError as error:
        raise ValueError(f"{where}: expected 'image score xmin ymin xmax ymax', found {line.strip()!r}") from error
    if not all(map(math.isfinite, (score, x1, y1, x2, y2))):
        raise ValueError(f"{where}: not finite numbers: {line.strip()!r}; the detector's weights may be broken")
    return _Row(_known_image(where, image_id, known), label, score, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1))
