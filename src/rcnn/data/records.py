"""What is known of one image, the protocol of a data set, and the packed store that every reader of ours returns."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, overload, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, Int64

from rcnn.data.report import Report


class Record(NamedTuple):
    """One image and its objects; boxes are in original pixels, by the data set's `offset`. Arrays are read-only."""

    image_id: str | int
    path: str
    height: int
    width: int
    boxes: Float32[np.ndarray, "n 4"]
    labels: Int64[np.ndarray, "n"]  # 1..C
    ignore: Bool[np.ndarray, "n"]  # difficult or crowd: neither object nor background
    areas: Float32[np.ndarray, "n"]  # by which COCO judges the size: of the mask where there is one
    crowd: Bool[np.ndarray, "n"]


@runtime_checkable
class Dataset(Protocol):
    """What the loader needs of a data set; `rcnn.testing.assert_is_dataset` checks one of your own."""

    @property
    def name(self) -> str:
        """The set's name, as given on the command line."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the labels 1..C."""
        ...

    @property
    def sizes(self) -> Int32[np.ndarray, "N 2"]:
        """Height and width of every image, as it is seen (EXIF orientation applied)."""
        ...

    @property
    def num_boxes(self) -> Int[np.ndarray, "N"]:
        """Objects of every image, ignored ones included."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Record: ...


class PackedStrings:
    """Many strings in one byte buffer: no Python object per string, so forked workers share the memory."""

    def __init__(self, strings: Iterable[str]):
        encoded = [os.fsencode(s) for s in strings]
        self._bytes = np.frombuffer(b"".join(encoded), np.uint8)
        self._ends = np.cumsum([0, *map(len, encoded)])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str:
        return os.fsdecode(self._bytes[self._ends[index] : self._ends[index + 1]].tobytes())


class RecordTable(Sequence[Record]):
    """All records of a set in a few flat arrays: cheap to pickle, and forked workers never copy it.

    Args:
        category_ids: by which the annotation file (COCO) knows the classes; empty: 1..C.
    """

    def __init__(
        self,
        *,
        name: str,
        classes: Sequence[str],
        root: str,
        image_ids: Sequence[str | int],
        paths: Iterable[str],
        sizes: Int[np.ndarray, "N 2"],
        num_boxes: Int[np.ndarray, "N"],
        boxes: Float32[np.ndarray, "T 4"],
        labels: Int[np.ndarray, "T"],
        ignore: Bool[np.ndarray, "T"],
        areas: Float32[np.ndarray, "T"],
        crowd: Bool[np.ndarray, "T"],
        category_ids: Sequence[int] = (),
        report: Report | None = None,
    ):
        self.name, self.classes, self.root = name, tuple(classes), os.fspath(root)
        self.category_ids = tuple(category_ids) or tuple(range(1, len(self.classes) + 1))
        self.report = report or Report()
        self._ids = _pack_ids(image_ids)
        self._paths = PackedStrings(_shorten(path, self.root) for path in paths)
        self.sizes = sizes.astype(np.int32)
        self.num_boxes = num_boxes.astype(np.int64)
        self._ends = np.concatenate([[0], np.cumsum(self.num_boxes)])
        self._objects = (boxes, labels.astype(np.int64), ignore, areas, crowd)
        refuse_repeated_ids(image_ids, name)

    @classmethod
    def from_records(
        cls,
        records: Iterable[Record],
        name: str,
        classes: Sequence[str],
        root: str = "",
        category_ids: Sequence[int] = (),
        report: Report | None = None,
    ) -> "RecordTable":
        """Packs records that were made one by one.

        Raises:
            ValueError: if two records have the same image id.
        """
        rows = list(records)
        return cls(
            name=name,
            classes=classes,
            root=root,
            image_ids=[row.image_id for row in rows],
            paths=[row.path for row in rows],
            sizes=np.array([(row.height, row.width) for row in rows], np.int32).reshape(-1, 2),
            num_boxes=np.array([len(row.boxes) for row in rows], np.int64),
            boxes=_join([row.boxes for row in rows], np.zeros((0, 4), np.float32)),
            labels=_join([row.labels for row in rows], np.zeros(0, np.int64)),
            ignore=_join([row.ignore for row in rows], np.zeros(0, np.bool_)),
            areas=_join([row.areas for row in rows], np.zeros(0, np.float32)),
            crowd=_join([row.crowd for row in rows], np.zeros(0, np.bool_)),
            category_ids=category_ids,
            report=report,
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "RecordTable": ...
    def __getitem__(self, index: int | slice) -> "Record | RecordTable":
        if isinstance(index, slice):
            chosen = (self[i] for i in range(*index.indices(len(self))))
            return RecordTable.from_records(chosen, self.name, self.classes, self.root, self.category_ids)
        position = range(len(self))[index]  # negative indices and IndexError as a list has them
        image_id, path = self._ids[position], os.path.join(self.root, self._paths[position])
        height, width = self.sizes[position].tolist()
        boxes, labels, ignore, areas, crowd = self._objects_of(position)
        return Record(
            image_id if isinstance(image_id, str) else int(image_id),
            path, height, width, boxes, labels, ignore, areas, crowd,
        )  # fmt: skip

    def _objects_of(self, position: int) -> list[np.ndarray]:
        views = [array[self._ends[position] : self._ends[position + 1]] for array in self._objects]
        for view in views:
            view.flags.writeable = False
        return views

    def trained_boxes(self) -> int:
        """Number of objects that are neither difficult nor crowd."""
        return int((~self._objects[2]).sum())


def refuse_repeated_ids(image_ids: Sequence[str | int], name: str) -> None:
    """Image ids must be unique in a set.

    Raises:
        ValueError: naming the first of those that come more than once.
    """
    if len(set(image_ids)) == len(image_ids):
        return
    seen, repeated = set(), []
    for image_id in image_ids:
        if image_id in seen:
            repeated.append(image_id)
        seen.add(image_id)
    first = ", ".join(repr(i) for i in repeated[:3])
    raise ValueError(
        f"{name}: {len(repeated)} image id(s) come more than once, first {first}; list every image once, "
        f"and merge only sets that share no image"
    )


def require_boxes(dataset: Dataset) -> None:
    """A set to train on must have an object.

    Raises:
        ValueError: if no image has a box, or all boxes are difficult or crowd.
    """
    if not len(dataset) or not dataset.num_boxes.sum():
        raise ValueError(
            f"{dataset.name}: none of its {len(dataset)} images has a box, so there is nothing to learn; "
            f"check the annotations, or choose another set with --data.train"
        )
    if isinstance(dataset, RecordTable) and not dataset.trained_boxes():
        raise ValueError(
            f"{dataset.name}: all {dataset.num_boxes.sum()} boxes are marked difficult or crowd and none is left to "
            f"learn; remove the marks, or choose another set with --data.train"
        )


def _pack_ids(image_ids: Sequence[str | int]) -> "PackedStrings | Int64[np.ndarray, 'N']":
    if all(isinstance(i, int) and -(1 << 63) <= i < 1 << 63 for i in image_ids):
        return np.array(image_ids, np.int64)
    return PackedStrings(str(i) for i in image_ids)


def _shorten(path: str, root: str) -> str:
    inside = root and path.startswith(os.path.join(root, ""))
    return path[len(os.path.join(root, "")) :] if inside else path


def _join(arrays: list[np.ndarray], empty: np.ndarray) -> np.ndarray:
    return np.concatenate([empty, *arrays]).astype(empty.dtype)
