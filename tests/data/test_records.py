import pickle
from collections.abc import Callable

import numpy as np
import pytest

from rcnn.data.records import PackedStrings, Record, RecordTable, require_boxes

MakeTable = Callable[..., RecordTable]


def record(image_id: str | int, boxes: int = 1, ignored: bool = False) -> Record:
    return Record(
        image_id=image_id,
        path=f"/data/images/{image_id}.jpg",
        height=40,
        width=60,
        boxes=np.tile(np.array([[1, 2, 3, 4]], np.float32), (boxes, 1)),
        labels=np.ones(boxes, np.int64),
        ignore=np.full(boxes, ignored),
        areas=np.full(boxes, 4, np.float32),
        crowd=np.zeros(boxes, np.bool_),
    )


def test_gives_back_what_was_packed() -> None:
    rows = [record("a", 2), record("ü", 0), record("c", 1, ignored=True)]
    table = RecordTable.from_records(rows, "trainval", ("cat",), "/data")
    assert (table.name, table.classes, table.category_ids) == ("trainval", ("cat",), (1,))
    assert table.num_boxes.tolist() == [2, 0, 1] and table.sizes.tolist() == [[40, 60]] * 3
    for given, got in zip(rows, table, strict=True):
        for name, value in given._asdict().items():
            assert np.array_equal(value, getattr(got, name)), name
            assert type(value) is type(getattr(got, name))


def test_is_a_sequence() -> None:
    table = RecordTable.from_records([record(i) for i in range(5)], "train", ("cat",))
    assert table[-1].image_id == 4 and [r.image_id for r in table[1:4:2]] == [1, 3]
    with pytest.raises(IndexError):
        table[5]


def test_records_cannot_be_changed_by_accident() -> None:
    table = RecordTable.from_records([record(1)], "train", ("cat",))
    for boxes in (table[0].boxes, pickle.loads(pickle.dumps(table))[0].boxes):
        with pytest.raises(ValueError, match="read-only"):
            boxes *= 2


def test_pickles_without_python_objects_per_record(make_table: MakeTable) -> None:
    table = make_table([(8, 9)] * 200)
    packed = pickle.dumps(table)
    assert len(packed) < 200 * 150
    copy = pickle.loads(packed)
    assert all(np.array_equal(x, y) for a, b in zip(table, copy, strict=True) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("ids", [(1, 2, 3, 2), ("x", "y", "x")])
def test_refuses_repeated_ids(ids: tuple[str | int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"merged: 1 image id\(s\) come more than once, first {ids[-1]!r}"):
        RecordTable.from_records([record(i) for i in ids], "merged", ("cat",))


def test_packed_strings_keep_any_text() -> None:
    strings = ["", "a", "bildér/ü.jpg", "\udcff", "x" * 1000]
    packed = PackedStrings(strings)
    assert [packed[i] for i in range(len(packed))] == strings


def test_a_set_to_train_on_needs_a_box_that_counts() -> None:
    require_boxes(RecordTable.from_records([record(1, 0), record(2, 1)], "train", ("cat",)))
    with pytest.raises(ValueError, match=r"train: none of its 2 images has a box.*--data.train"):
        require_boxes(RecordTable.from_records([record(1, 0), record(2, 0)], "train", ("cat",)))
    with pytest.raises(ValueError, match="all 3 boxes are marked difficult or crowd"):
        require_boxes(RecordTable.from_records([record(1, 3, ignored=True)], "train", ("cat",)))
