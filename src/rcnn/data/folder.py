"""Your own pictures: a folder with one <set>.csv a set, one box a line.

    image,x1,y1,x2,y2,label
    street/0001.jpg,48,240,195,371,car
    street/0002.jpg,,,,,

Paths are relative to the folder (or to `images` inside it). x1, y1 is a box's left top corner and x2, y2 its right
bottom corner in pixels from 0 at the picture's left top corner, so a box's width is x2 - x1 and a picture of 640 pixels
spans 0 to 640. A line with the image alone is a picture without objects. A column `difficult` (0 or 1) may follow.
"""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from rcnn.data.draft import Draft, check_classes, finish
from rcnn.data.fields import parse_flag, parse_number
from rcnn.data.paths import existing_root, inside, list_names, read_text, split_sets, suggest
from rcnn.data.records import RecordTable

CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("image", *CORNERS, "label")


def load_folder(
    root: str | os.PathLike[str],
    image_set: str,
    *,
    classes: Sequence[str] = (),
    offset: float,
    strict: bool = False,
    pictures: bool = True,
) -> RecordTable:
    """Reads one or more sets, joined by +, of the csv format described above.

    Args:
        classes: empty: the labels found, sorted.
        strict: refuse boxes that reach outside their image or have no area, instead of clipping or dropping them.
        pictures: False: believe the annotated sizes; the pictures need not be there (metrics need only boxes).

    Raises:
        ValueError: naming file, line and value of what is wrong.
    """
    folder = existing_root(root)
    draft = Draft(name=image_set, root=str(folder), noun="line", to_edges=lambda boxes: boxes, pictures=pictures)
    owner_of: dict[str, int] = {}
    for part in split_sets(image_set):
        for number, row in _rows(folder, part):
            try:
                _add_row(draft, folder, owner_of, f"{folder}/{part}.csv", number, row)
            except ValueError as error:
                draft.faults.add("unusable line", str(error))
    return finish(draft, classes=check_classes(classes), offset=offset, strict=strict)


def list_csv_sets(root: Path) -> list[str]:
    """Names of the sets of a folder: its csv files that have the format's columns."""
    return sorted(path.stem for path in root.glob("*.csv") if not _missing_columns(_first_line(path)))


def _rows(root: Path, part: str) -> list[tuple[int, dict[str, str]]]:
    """Line number and columns of every line that is not empty."""
    path = root / f"{inside(part, where=str(root))}.csv"
    if not path.is_file():
        raise ValueError(f"{path}: no such file for the set '{part}': {suggest(part, list_csv_sets(root))}")
    reader = csv.DictReader(read_text(path, what="csv file").splitlines(), restval="", skipinitialspace=True)
    try:
        return _checked_rows(path, reader)
    except csv.Error as error:  # a quote that is not closed makes one field of the rest
        raise ValueError(f"{path}: line {reader.line_num}: {error}; is a quote before it not closed?") from error


def _checked_rows(path: Path, reader: "csv.DictReader[str]") -> list[tuple[int, dict[str, str]]]:
    header = [name.strip() for name in reader.fieldnames or []]
    missing = _missing_columns(header)
    if missing:
        raise ValueError(
            f"{path}: its first line '{list_names(header)}' lacks the column(s) {', '.join(missing)}; "
            f"begin the file with {','.join(COLUMNS)}"
        )
    reader.fieldnames = header
    return [(reader.line_num, {k: v.strip() for k, v in row.items() if isinstance(v, str)}) for row in reader]


def _first_line(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return [name.strip() for name in file.readline().split(",")]


def _missing_columns(header: Sequence[str]) -> list[str]:
    return [column for column in COLUMNS if column not in header]


def _add_row(draft: Draft, root: Path, owner_of: dict[str, int], source: str, number: int, row: dict[str, str]) -> None:
    where = f"{source}: line {number}"
    name = inside(row["image"], where=where)
    if name not in owner_of:
        owner_of[name] = draft.add_image(name, _image_path(root, name), source)
    elif draft.sources[owner_of[name]] != source:
        other = draft.sources[owner_of[name]]
        raise ValueError(f"{where}: {name} is already in {other}; merge sets that share no image")
    if not any(row[column] for column in CORNERS) and not row["label"]:
        return
    if not row["label"]:
        raise ValueError(f"{where}: the box has no label; add it, or leave x1, y1, x2, y2 empty too")
    box = [parse_number(row[column], column, where=where) for column in CORNERS]
    difficult = parse_flag(row.get("difficult"), "difficult", where=where)
    draft.add_object(owner_of[name], number, box, row["label"], ignore=difficult)


def _image_path(root: Path, name: str) -> str:
    within = f"{root}/images/{name}"
    return within if not os.path.isfile(f"{root}/{name}") and os.path.isfile(within) else f"{root}/{name}"
