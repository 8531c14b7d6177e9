"""Pascal VOC: a VOCdevkit with sets like 2007_trainval+2012_trainval, or one folder of the same build."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from rcnn.data.draft import Draft, check_classes, finish
from rcnn.data.fields import parse_flag, parse_number
from rcnn.data.paths import existing_root, inside, read_text, split_sets, suggest
from rcnn.data.records import RecordTable

# Source: Everingham et al., The PASCAL Visual Object Classes Challenge 2007, table 1; the devkit's order.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
YEAR_FOLDER = re.compile(r"VOC(\d{4})")
YEAR_SET = re.compile(r"(\d{4})_(.+)")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
MOST_BYTES = 1 << 24  # of an annotation; in memory its elements take fifty times as many
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def load_voc(
    root: str | os.PathLike[str],
    image_set: str,
    *,
    classes: Sequence[str] = (),
    offset: float,
    strict: bool = False,
    pictures: bool = True,
) -> RecordTable:
    """Reads one or more sets, joined by +, of Pascal VOC annotations.

    A pixel (1, 1) of the files is (0, 0) here; a box's right edge is stored as xmax - offset, so that its width is
    that of the files under either convention.

    Args:
        classes: empty: the 20 of VOC for a VOCdevkit, else the names found, sorted.
        strict: refuse boxes that reach outside their image or have no area, instead of clipping or dropping them.
        pictures: False: believe the annotated sizes; the pictures need not be there (metrics need only boxes).

    Raises:
        ValueError: naming file, object and value of what is wrong.
    """
    folder = find_voc_root(root)
    chosen = check_classes(classes) or (VOC_CLASSES if is_devkit(folder) else ())
    draft = Draft(name=image_set, root=str(folder), noun="object", to_edges=_to_edges, pictures=pictures)
    for part in split_sets(image_set):
        _read_set(draft, *_locate_set(folder, part))
    return finish(draft, classes=chosen, other_classes=VOC_CLASSES if classes else (), offset=offset, strict=strict)


def find_voc_root(root: str | os.PathLike[str]) -> Path:
    """The VOCdevkit or VOC-style folder at `root`, or the VOCdevkit right inside it.

    Raises:
        ValueError: if there is none.
    """
    folder = existing_root(root)
    for candidate in (folder, folder / "VOCdevkit"):
        if is_devkit(candidate) or is_voc_folder(candidate):
            return candidate
    raise ValueError(
        f"{folder}: neither a VOCdevkit (with a folder like VOC2007) nor a VOC-style folder (with Annotations, "
        f"JPEGImages and ImageSets/Main); give one with --data.root"
    )


def is_devkit(folder: Path) -> bool:
    """Whether `folder` holds folders like VOC2007."""
    return bool(_years(folder))


def is_voc_folder(folder: Path) -> bool:
    """Whether `folder` holds Annotations and ImageSets itself."""
    return (folder / "Annotations").is_dir() and (folder / "ImageSets").is_dir()


def _years(folder: Path) -> list[str]:
    if not folder.is_dir():
        return []
    matches = [YEAR_FOLDER.fullmatch(entry.name) for entry in folder.iterdir()]
    return sorted(match[1] for match in matches if match and is_voc_folder(folder / match[0]))


def _locate_set(root: Path, part: str) -> tuple[Path, str]:
    """The VOC-style folder and the list's name within it."""
    if not is_devkit(root):
        folder, split = root, part
    else:
        year_set = YEAR_SET.fullmatch(part)
        folder, split = (root / f"VOC{year_set[1]}", year_set[2]) if year_set else (root, "")
    if not split or split not in _lists(folder):
        raise ValueError(f"{root}: no set '{part}': {suggest(part, _available_sets(root))}")
    return folder, split


def _available_sets(root: Path) -> list[str]:
    if not is_devkit(root):
        return _lists(root)
    return [f"{year}_{split}" for year in _years(root) for split in _lists(root / f"VOC{year}")]


def _lists(folder: Path) -> list[str]:
    """Names of the sets of a folder; the devkit's lists of one class (cat_train) come last."""
    names = sorted(path.stem for path in (folder / "ImageSets" / "Main").glob("*.txt"))
    return sorted(names, key=lambda name: name.rpartition("_")[0] in VOC_CLASSES)


def _read_set(draft: Draft, folder: Path, split: str) -> None:
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    names = [line.strip() for line in read_text(path, what="list of images").splitlines() if line.strip()]
    if not names:
        raise ValueError(f"{path}: the set is empty; write one image name a line, without its ending")
    files = {entry.name for entry in os.scandir(folder / "JPEGImages")} if (folder / "JPEGImages").is_dir() else set()
    for number, line in enumerate(names, start=1):
        try:
            _read_image(draft, folder, _without_suffix(inside(line, where=f"{path}: line {number}")), files)
        except ValueError as error:
            draft.faults.add("unusable annotation", str(error))


def _without_suffix(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _read_image(draft: Draft, folder: Path, name: str, files: set[str]) -> None:
    source = f"{folder}/Annotations/{name}.xml"
    tree = _parse(source)
    height, width = (_size(source, tree, side) for side in ("height", "width"))
    owner = draft.add_image(name, _image_path(folder, name, files), source, (height, width))
    for number, node in enumerate(tree.findall("object"), start=1):
        label = (node.findtext("name") or "").strip()
        where = f"{source}: object {number} '{label}'"
        if not label:
            raise ValueError(f"{where}: has no name; add <name>, or remove the object")
        box = [parse_number(node.findtext(f"bndbox/{corner}"), f"bndbox/{corner}", where=where) for corner in CORNERS]
        difficult = parse_flag(node.findtext("difficult"), "difficult", where=where)
        draft.add_object(owner, number, box, label, ignore=difficult)


def _parse(source: str) -> Any:
    import defusedxml
    from defusedxml import ElementTree

    try:
        with open(source, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ValueError(f"longer than {MOST_BYTES} bytes, which no annotation of a picture is")
        tree = ElementTree.fromstring(data)
    except OSError as error:
        raise ValueError(f"{source}: no such annotation ({error.strerror}); add it, or take it off the list") from error
    except defusedxml.DefusedXmlException as error:
        raise ValueError(f"{source}: declares an XML entity, which is refused as unsafe; remove its DOCTYPE") from error
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # LookupError: an encoding nobody knows
        raise ValueError(f"{source}: is no valid XML: {error}; write it again, or take it off the list") from error
    if tree.tag != "annotation":
        raise ValueError(f"{source}: is no VOC annotation: its first element is <{tree.tag}>, not <annotation>")
    return tree


def _image_path(folder: Path, name: str, files: set[str]) -> str:
    """The picture of that name; the first spelling if there is none, so that the check of the pictures names it."""
    for suffix in (*IMAGE_SUFFIXES, *(s.upper() for s in IMAGE_SUFFIXES)):
        if name + suffix in files or ("/" in name and (folder / "JPEGImages" / (name + suffix)).is_file()):
            return f"{folder}/JPEGImages/{name}{suffix}"
    return f"{folder}/JPEGImages/{name}{IMAGE_SUFFIXES[0]}"


def _size(source: str, tree: Any, side: str) -> float:
    """An annotated side; 0 if it is not said, as some tools write it too."""
    text = tree.findtext(f"size/{side}")
    return 0.0 if text is None else parse_number(text, f"size/{side}", where=source)


def _to_edges(corners: Float64[np.ndarray, "T 4"]) -> Float64[np.ndarray, "T 4"]:
    """1-based inclusive corners -> edges; a box with xmax = xmin, which tools write for a mere click, keeps no area."""
    edges = corners - np.array([1.0, 1.0, 0.0, 0.0])
    no_area = (corners[:, 2:] <= corners[:, :2]).any(1)
    edges[no_area, 2:] = edges[no_area, :2]
    return edges
