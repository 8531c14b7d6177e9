from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rcnn.data.records import Record, RecordTable
from rcnn.testing import assert_is_dataset


def table(folder: Path, **changes: object) -> RecordTable:
    """A data set of one record, right but for the changes."""
    (folder / "a.jpg").touch()
    record = Record(
        image_id="a",
        path=str(folder / "a.jpg"),
        height=40,
        width=60,
        boxes=np.array([[0, 0, 59, 39]], np.float32),
        labels=np.array([1]),
        ignore=np.array([False]),
        areas=np.array([2400], np.float32),
        crowd=np.array([False]),
    )
    return RecordTable.from_records([record._replace(**changes)], "own", ("cat",))


def test_a_sound_data_set_passes(tmp_path: Path) -> None:
    assert_is_dataset(table(tmp_path), offset=1.0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"boxes": np.array([[0, 0, 60, 39]], np.float32)}, "reaches outside the image"),
        ({"boxes": np.array([[-1, 0, 9, 39]], np.float32)}, "reaches outside the image"),
        ({"boxes": np.array([[9, 0, 8, 39]], np.float32)}, "a box has no area"),
        ({"boxes": np.array([[np.nan, 0, 8, 39]], np.float32)}, "not finite"),
        ({"labels": np.array([0])}, r"labels must be 1\.\.1"),
        ({"labels": np.array([2])}, r"labels must be 1\.\.1"),
        ({"crowd": np.array([True])}, "a crowd must be ignored too"),
        ({"path": "/absent.jpg"}, "is no file"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, changes: dict[str, object], problem: str) -> None:
    with pytest.raises(AssertionError, match=rf"record 0 \('a'\): .*{problem}"):
        assert_is_dataset(table(tmp_path, **changes), offset=1.0)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda made: setattr(made, "classes", ["cat"]), "tuple of str"),
        (lambda made: setattr(made, "classes", ("cat", "cat")), "unique"),
        (lambda made: setattr(made, "sizes", made.sizes[0]), r"\(N, 2\)"),
        (lambda made: setattr(made, "num_boxes", made.num_boxes + 1), r"boxes has shape \(1, 4\), not \(2, 4\)"),
    ],
)
def test_what_is_wrong_with_the_set_is_named(tmp_path: Path, change: Callable[..., None], problem: str) -> None:
    made = table(tmp_path)
    change(made)
    with pytest.raises(AssertionError, match=problem):
        assert_is_dataset(made, offset=1.0)
