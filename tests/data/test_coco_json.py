import json
import math
from pathlib import Path
from typing import Any

import pytest

from rcnn.data.coco_json import Annotation, Category, Image, read_coco_file

ENTRY = {"id": 5, "image_id": 1, "category_id": 2, "bbox": [1, 2.5, 3, 4]}


def write(tmp_path: Path, **parts: Any) -> Path:
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"images": [{"id": 1}], "categories": [{"id": 2, "name": "cat"}], **parts}))
    return path


def test_reads_what_we_use_and_skips_the_rest(tmp_path: Path) -> None:
    document = read_coco_file(write(tmp_path, info={}, annotations=[{**ENTRY, "segmentation": [[1, 2]], "iscrowd": 1}]))
    assert document.images == [Image(1)] and document.categories == [Category(2, "cat")]
    assert document.annotations == [Annotation(1, 2, (1, 2.5, 3, 4), id=5, iscrowd=1)]
    assert read_coco_file(write(tmp_path)).annotations is None


def test_nan_is_read_for_the_check_of_the_boxes(tmp_path: Path) -> None:
    document = read_coco_file(write(tmp_path, annotations=[{**ENTRY, "bbox": [1, 2, math.nan, math.inf]}]))
    assert document.annotations is not None and math.isnan(document.annotations[0].bbox[2])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"bbox": [1, 2, 3]}, r"length 4.*\$\.annotations\[1\]\.bbox"),
        ({"bbox": [1, 2, "3", 4]}, r"Expected `float`, got `str` - at `\$\.annotations\[1\]\.bbox\[2\]`"),
        ({"bbox": None}, r"got `null` - at `\$\.annotations\[1\]\.bbox`"),
        ({"bbox": [1, 2, "3", math.nan]}, r"Expected `float`, got `str` - at `\$\.annotations\[1\]\.bbox\[2\]`"),
        ({"category_id": "cat"}, r"Expected `int`, got `str` - at `\$\.annotations\[1\]\.category_id`"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=rf"x\.json: .*{problem}.*correct or remove"):
        read_coco_file(write(tmp_path, annotations=[ENTRY, {**ENTRY, **change}]))


def test_missing_fields_are_named(tmp_path: Path) -> None:
    entry = {key: value for key, value in ENTRY.items() if key != "bbox"}
    with pytest.raises(ValueError, match=r"missing required field `bbox` - at `\$\.annotations\[0\]`"):
        read_coco_file(write(tmp_path, annotations=[entry]))


@pytest.mark.parametrize("text", ["", "{", '{"images": [NaN', "\xff", "[" * 100_000])
def test_what_is_no_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"x\.json: (is no valid JSON|Expected `object`)"):
        read_coco_file(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"y\.json: cannot be read: No such file"):
        read_coco_file(tmp_path / "y.json")
