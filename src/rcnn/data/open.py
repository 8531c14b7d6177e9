"""One way to open a data set of any format, which may be found out from the folder."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rcnn.data.paths import existing_root
from rcnn.data.records import RecordTable

Format = Literal["voc", "coco", "folder"]


def open_dataset(
    format: Literal["auto", "voc", "coco", "folder"],
    root: str | os.PathLike[str],
    image_set: str,
    classes: Sequence[str] = (),
    offset: float = 1.0,
    strict: bool = False,
    pictures: bool = True,
) -> RecordTable:
    """Reads the annotations of a set, or of several joined by +, and checks them against the pictures.

    Args:
        format: auto looks at the root, see `find_format`.
        classes: names of the labels 1..C; empty: what the format's reader takes by default.
        offset: 1 for models with inclusive boxes (width = x2 - x1 + 1), 0 for continuous ones.
        strict: refuse boxes that are wrong instead of clipping or dropping them with a warning.
        pictures: False: believe the annotated sizes; the pictures need not be there (metrics need only boxes).

    Raises:
        ValueError: one message for all that is wrong, with file, object, value and way out.
    """
    from rcnn.data.coco import load_coco
    from rcnn.data.folder import load_folder
    from rcnn.data.voc import load_voc

    readers = {"voc": load_voc, "coco": load_coco, "folder": load_folder}
    found = find_format(format, root, image_set)
    return readers[found](root, image_set, classes=classes, offset=offset, strict=strict, pictures=pictures)


def find_format(format: str, root: str | os.PathLike[str], image_set: str = "") -> Format:
    """The format as given, or for 'auto' the one whose own files are in the folder.

    Raises:
        ValueError: if the folder is missing or looks like none of them, or the format is not known.
    """
    if format in ("voc", "coco", "folder"):
        return format
    if format != "auto":
        raise ValueError(f"--data.format '{format}' is not known; use auto, voc, coco or folder")
    from rcnn.data.folder import list_csv_sets
    from rcnn.data.voc import is_devkit, is_voc_folder

    if image_set.endswith(".json") and Path(image_set).is_file():
        return "coco"
    folder = existing_root(root)
    if any(is_devkit(candidate) or is_voc_folder(candidate) for candidate in (folder, folder / "VOCdevkit")):
        return "voc"
    if any(folder.glob("annotations/*.json")) or any(folder.glob("*/_annotations.coco.json")) or ".json" in image_set:
        return "coco"
    if list_csv_sets(folder):
        return "folder"
    raise ValueError(
        f"{folder}: is no data set we know. Expected a VOCdevkit (VOC2007/...) or VOC-style folder (Annotations, "
        f"JPEGImages, ImageSets/Main); COCO (annotations/instances_<set>.json); or a folder with <set>.csv "
        f"(image,x1,y1,x2,y2,label). Correct --data.root, or give --data.format"
    )
