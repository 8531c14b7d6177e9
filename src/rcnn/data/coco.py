"""COCO: annotations/instances_<set>.json and a folder of images, under the names of 2014, of 2017 or of your own."""

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float64

from rcnn.data.coco_json import Annotation, Category, CocoFile, Image, read_coco_file
from rcnn.data.draft import Draft, check_classes, finish
from rcnn.data.paths import existing_root, inside, split_sets, suggest
from rcnn.data.records import RecordTable, refuse_repeated_ids

# Source: py-faster-rcnn's division of COCO val2014; both halves lie in the folder of val2014.
IMAGE_FOLDER_OF_SET = {"minival2014": "val2014", "valminusminival2014": "val2014"}
NAME_PATTERNS = ("instances_{}.json", "{}.json", "image_info_{}.json")


def load_coco(
    root: str | os.PathLike[str],
    image_set: str,
    *,
    classes: Sequence[str] = (),
    offset: float,
    strict: bool = False,
    pictures: bool = True,
) -> RecordTable:
    """Reads one or more sets, joined by +, of COCO annotations; a set is a name or the path of a json file.

    Args:
        classes: empty: all categories of the file, in the order of their ids; else objects of others are left out.
        strict: refuse boxes that reach outside their image or have no area, instead of clipping or dropping them.
        pictures: False: believe the annotated sizes; the pictures need not be there (metrics need only boxes).

    Raises:
        ValueError: naming file, annotation and value of what is wrong.
    """
    is_file = Path(image_set).is_file()
    folder = Path(image_set).parent if is_file and not Path(root).is_dir() else existing_root(root)
    parts = [image_set] if is_file else split_sets(image_set)
    files = [(part, find_annotations(folder, part)) for part in parts]
    documents = [(part, path, read_coco_file(path)) for part, path in files]
    id_of = _category_ids(documents)
    chosen = _choose(check_classes(classes), list(id_of), files[0][1])
    draft = Draft(name=image_set, root=str(folder), noun="annotation", to_edges=_to_edges, pictures=pictures)
    prefixed = _ids_collide([document for _, _, document in documents])
    for part, path, document in documents:
        _Reader(draft, folder, part, path, prefix=f"{part}/" if prefixed else "").read(document)
    if prefixed and not draft.faults.total:
        refuse_repeated_ids(draft.paths, image_set)
    ids = [id_of[name] for name in chosen] if id_of else []
    return finish(draft, classes=chosen, other_classes=id_of, category_ids=ids, offset=offset, strict=strict)


def find_annotations(root: Path, part: str) -> Path:
    """The json file of a set.

    Raises:
        ValueError: if there is none, with those that are there.
    """
    for path in _annotation_candidates(root, part):
        if path.is_file():
            return path
    there = [path.stem.removeprefix("instances_") for path in sorted(root.glob("annotations/*.json"))]
    raise ValueError(
        f"{root}: no annotations of the set '{part}' (annotations/instances_{part}.json): {suggest(part, there)}; "
        f"a set may also be the path of a json file"
    )


def _annotation_candidates(root: Path, part: str) -> Iterator[Path]:
    if part.endswith(".json"):
        yield from (Path(part), root / part, root / "annotations" / part)
        return
    for folder in (root / "annotations", root):
        yield from (folder / pattern.format(part) for pattern in NAME_PATTERNS)
    yield root / part / "_annotations.coco.json"  # as Roboflow exports


def _category_ids(documents: list[tuple[str, Path, CocoFile]]) -> dict[str, int]:
    """Name -> id, in the order of the ids; all files must agree."""
    _, first_path, first = documents[0]
    id_of = {category.name: category.id for category in sorted(first.categories, key=lambda c: c.id)}
    for _, path, document in documents:
        _refuse_repeated_categories(path, document.categories)
        differing = {(c.name, c.id) for c in document.categories} ^ set(id_of.items())
        if differing:
            names = ", ".join(sorted({f"{name} ({category_id})" for name, category_id in differing})[:5])
            raise ValueError(
                f"{path}: its categories differ from those of {first_path} in {names}; "
                f"merge only sets of the same categories"
            )
    return id_of


def _refuse_repeated_categories(path: Path, categories: list[Category]) -> None:
    for what in ("id", "name"):
        values = [getattr(category, what) for category in categories]
        repeated = [value for value in values if values.count(value) > 1]
        if repeated:
            raise ValueError(f"{path}: two categories have the {what} {repeated[0]!r}; change one of them")


def _choose(classes: tuple[str, ...], names: list[str], path: Path) -> tuple[str, ...]:
    for name in classes:
        if names and name not in names:
            raise ValueError(f"{path}: no category '{name}' (--data.classes): {suggest(name, names)}")
    if not (classes or names):
        raise ValueError(f"{path}: has no categories, so the classes are not known; give --data.classes")
    return classes or tuple(names)


def _ids_collide(documents: list[CocoFile]) -> bool:
    """Whether two files count their images with the same ids, as sets of your own do (1, 2, ...)."""
    sets = [{image.id for image in document.images} for document in documents]
    return len(set().union(*sets)) < sum(map(len, sets))


class _Reader:
    """Reads one file into a draft."""

    def __init__(self, draft: Draft, root: Path, part: str, path: Path, *, prefix: str):
        self.draft, self.path, self.prefix = draft, path, prefix
        self.image_set = Path(part).stem.removeprefix("instances_") if part.endswith(".json") else part
        self.folder_name = IMAGE_FOLDER_OF_SET.get(self.image_set, self.image_set)
        self.folders = [f for f in self._image_folders(root) if f.is_dir()]

    def read(self, document: CocoFile) -> None:
        if document.annotations is None and not self.path.name.startswith("image_info_"):
            raise ValueError(f"{self.path}: has no list 'annotations'; is it a file of another kind?")
        owner_of = {image.id: self._add_image(image) for image in document.images}
        name_of = {category.id: category.name for category in document.categories}
        for annotation in document.annotations or []:
            fault = _fault(annotation, owner_of, name_of)
            if fault:
                self.draft.faults.add("unusable annotation", f"{self.path}: annotation {annotation.id}: {fault}")
            else:
                self._add_object(annotation, owner_of[annotation.image_id], name_of[annotation.category_id])

    def _add_object(self, annotation: Annotation, owner: int, name: str) -> None:
        area = math.nan if annotation.area is None else annotation.area
        crowd = bool(annotation.iscrowd)
        self.draft.add_object(owner, annotation.id, annotation.bbox, name, crowd=crowd, area=area)

    def _add_image(self, image: Image) -> int:
        path, where = "", f"{self.path}: image {image.id}"
        try:
            names = [inside(name, where=where) for name in self._file_names(image)]
            needed = self.draft.pictures or not (image.height and image.width)
            path = self._locate(names) if needed else names[0]
        except ValueError as error:
            self.draft.faults.add("unusable image path", str(error))
        image_id = f"{self.prefix}{image.id}" if self.prefix else image.id
        return self.draft.add_image(image_id, path, str(self.path), (image.height, image.width))

    def _image_folders(self, root: Path) -> list[Path]:
        beside = self.path.parent
        within = [root / self.folder_name, root / "images" / self.folder_name, root / "images", root]
        return [*within, beside, beside.parent, beside.parent / self.folder_name, beside / "images"]

    def _file_names(self, image: Image) -> list[str]:
        """How the file may be called: as written, and as COCO named the same picture in 2014 and 2017."""
        if not isinstance(image.id, int):
            return [image.file_name]
        names = [f"COCO_{self.folder_name}_{image.id:012d}.jpg", f"{image.id:012d}.jpg"]
        return [image.file_name, *names] if image.file_name else names

    def _locate(self, names: list[str]) -> str:
        """The first existing file; where one was found, the next is looked for first."""
        for name in names:
            for position, folder in enumerate(self.folders):
                path = f"{folder}/{name}"
                if os.path.isfile(path):
                    self.folders.insert(0, self.folders.pop(position))
                    return path
        raise ValueError(
            f"{self.path}: no image file '{names[0]}' in {', '.join(map(str, self.folders))}; "
            f"add it, or correct file_name or --data.root"
        )


def _fault(annotation: Annotation, owner_of: dict[int | str, int], name_of: dict[int, str]) -> str:
    if annotation.image_id not in owner_of:
        return f"its image_id {annotation.image_id!r} is not in 'images'; add the image, or remove the annotation"
    if annotation.category_id not in name_of:
        known = ", ".join(f"{key} {name}" for key, name in list(name_of.items())[:12])
        return f"its category_id {annotation.category_id} is not in 'categories' ({known}, ...); correct it"
    return ""


def _to_edges(boxes: Float64[np.ndarray, "T 4"]) -> Float64[np.ndarray, "T 4"]:
    edges = boxes.copy()
    edges[:, 2:] += edges[:, :2]
    return edges
