"""Annotations as a reader found them, and the checks that turn them into a RecordTable."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float64, Int

from rcnn.data.boxes_check import check_boxes
from rcnn.data.images import read_sizes
from rcnn.data.paths import suggest
from rcnn.data.records import RecordTable
from rcnn.data.report import EXAMPLES, Report
from rcnn.data.size_cache import cached_sizes

SIZE_DIFFERS = "annotated size differs from the picture's, which counts"
NOT_CHOSEN = "object of a class that was not chosen, left out"
BAD_IMAGE = "unusable image"
UNKNOWN_CLASS = "unknown class"

LONGEST_SIDE = 1 << 20  # px; OpenCV reads no longer one

logger = logging.getLogger("rcnn.data")


@dataclass
class Draft:
    """What a reader collects: flat lists, one entry an image and one an object. Problems are gathered, not raised.

    Args:
        noun: what an object is called in the annotation file, for messages ('object', 'annotation', 'line').
        to_edges: boxes as written -> left, top, right, bottom edge, continuous and 0-based.
        pictures: False: the annotated sizes are believed, and the files need not be there.
    """

    name: str
    root: str
    noun: str
    to_edges: Callable[[Float64[np.ndarray, "T 4"]], Float64[np.ndarray, "T 4"]]
    pictures: bool = True
    image_ids: list[str | int] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)  # annotation file of each image
    sizes: list[tuple[float, float]] = field(default_factory=list)  # height, width as annotated, 0 = not said
    owners: list[int] = field(default_factory=list)  # position of each object's image
    numbers: list[int | str] = field(default_factory=list)  # by which the annotation file knows the object
    boxes: list[Sequence[float]] = field(default_factory=list)  # as written
    labels: list[str] = field(default_factory=list)
    ignore: list[bool] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)  # NaN = that of the box
    faults: Report = field(default_factory=Report)  # the set cannot be used
    notes: Report = field(default_factory=Report)  # mended, and told

    def add_image(self, image_id: str | int, path: str, source: str, size: tuple[float, float] = (0, 0)) -> int:
        """Adds an image and returns its position."""
        self.image_ids.append(image_id)
        self.paths.append(path)
        self.sources.append(source)
        self.sizes.append(size)
        return len(self.paths) - 1

    def add_object(
        self,
        owner: int,
        number: int | str,
        box: Sequence[float],
        label: str,
        *,
        ignore: bool = False,
        crowd: bool = False,
        area: float = float("nan"),
    ) -> None:
        """Adds an object of the image at position `owner`."""
        self.owners.append(owner)
        self.numbers.append(number)
        self.boxes.append(box)
        self.labels.append(label)
        self.ignore.append(ignore or crowd)
        self.crowd.append(crowd)
        self.areas.append(area)

    def where(self, position: int) -> str:
        """Names an object for a message."""
        return f"{self.sources[self.owners[position]]}: {self.noun} {self.numbers[position]} '{self.labels[position]}'"


def finish(
    draft: Draft,
    *,
    classes: Sequence[str],
    other_classes: Collection[str] = (),
    category_ids: Sequence[int] = (),
    offset: float,
    strict: bool,
) -> RecordTable:
    """Checks a draft against its pictures and packs it; what was mended is logged once.

    Args:
        classes: names of the labels 1..C; empty: the names found, sorted.
        other_classes: names that are known and may be left out with a count; any further name is an error.
        category_ids: of the classes, where the annotation file has such.
        strict: refuse instead of mending.

    Raises:
        ValueError: if the set is empty or cannot be used, with the counts and first examples of what is wrong.
    """
    _refuse(draft, draft.faults)
    if not draft.paths:
        raise ValueError(f"{draft.name}: the set in {draft.root} lists no image; choose another set")
    classes = tuple(classes) or _found_classes(draft)
    labels = _label_objects(draft, classes, other_classes)
    sizes = _measure_images(draft)
    _refuse(draft, draft.faults)
    objects, edges = _mend_boxes(draft, labels, sizes, strict)
    _note_left_out(draft, labels)
    if draft.notes.total:
        logger.warning("%s\n%s", _heading(draft, draft.notes), draft.notes.format())
    areas = np.array(draft.areas, np.float64)[objects]
    areas = np.where(np.isnan(areas), (edges[:, 2:] - edges[:, :2]).prod(1), areas)
    return RecordTable(
        name=draft.name,
        classes=classes,
        root=draft.root,
        image_ids=draft.image_ids,
        paths=draft.paths,
        sizes=sizes,
        num_boxes=np.bincount(np.array(draft.owners, np.int64)[objects], minlength=len(sizes)),
        boxes=(edges - np.array([0, 0, offset, offset])).astype(np.float32),
        labels=labels[objects],
        ignore=np.array(draft.ignore, np.bool_)[objects],
        areas=areas.astype(np.float32),
        crowd=np.array(draft.crowd, np.bool_)[objects],
        category_ids=category_ids,
        report=draft.notes,
    )


def check_classes(classes: Sequence[str]) -> tuple[str, ...]:
    """Class names given by the user.

    Raises:
        ValueError: if one is empty or comes twice.
    """
    for name in classes:
        if not name.strip() or list(classes).count(name) > 1:
            raise ValueError(f"--data.classes: '{name}' is empty or comes twice; name every class once")
    return tuple(classes)


def _mend_boxes(
    draft: Draft, labels: Int[np.ndarray, "T"], sizes: Int[np.ndarray, "N 2"], strict: bool
) -> tuple[Int[np.ndarray, "K"], Float64[np.ndarray, "K 4"]]:
    """Positions of the objects that are kept, image by image, and their edges inside the image."""
    owners = np.array(draft.owners, np.int64)
    taken = np.flatnonzero(labels)
    edges = draft.to_edges(np.array(draft.boxes, np.float64).reshape(-1, 4))[taken]
    checked = check_boxes(edges, sizes[owners[taken]])
    for kind, bad in checked.problems.items():
        draft.notes.add_many(kind, len(bad), [_describe(draft, p, sizes) for p in taken[bad[:EXAMPLES]].tolist()])
    if strict:
        _refuse(draft, draft.notes, way_out="; correct the annotations, or mend them on reading (--data.no-strict)")
    kept = np.flatnonzero(checked.kept)
    order = kept[np.argsort(owners[taken[kept]], kind="stable")]
    return taken[order], checked.edges[order]


def _found_classes(draft: Draft) -> tuple[str, ...]:
    if not draft.labels:
        raise ValueError(
            f"{draft.name}: no image of the set in {draft.root} has an object, so the classes are not known; "
            f"check the annotations, or give --data.classes"
        )
    return tuple(sorted(set(draft.labels)))


def _label_objects(draft: Draft, classes: tuple[str, ...], other_classes: Collection[str]) -> Int[np.ndarray, "T"]:
    """Label of each object, 0 if it is left out; names not known at all become faults."""
    label_of = {name: label for label, name in enumerate(classes, start=1)}
    labels = np.array([label_of.get(name, 0) for name in draft.labels], np.int64)
    unknown = [int(p) for p in np.flatnonzero(labels == 0) if draft.labels[p] not in other_classes]
    draft.faults.add_many(UNKNOWN_CLASS, len(unknown), _one_per_name(draft, unknown, classes))
    return labels


def _one_per_name(draft: Draft, positions: list[int], classes: tuple[str, ...]) -> list[str]:
    first: dict[str, int] = {}
    for position in positions:
        first.setdefault(draft.labels[position], position)
    return [
        f"{draft.where(position)}: class '{name}' is not known: {suggest(name, classes)}; "
        f"correct the name, or give all classes with --data.classes"
        for name, position in first.items()
    ]


def _note_left_out(draft: Draft, labels: Int[np.ndarray, "T"]) -> None:
    left_out = np.flatnonzero(labels == 0)
    draft.notes.add_many(NOT_CHOSEN, len(left_out), [draft.where(p) for p in left_out[:EXAMPLES].tolist()])


def _measure_images(draft: Draft) -> Int[np.ndarray, "N 2"]:
    """True sizes of the pictures; unusable files become faults, wrong annotated sizes become notes."""
    measured = cached_sizes(draft.paths) if draft.pictures else _annotated_sizes(draft)
    for position, (size, (height, width)) in enumerate(zip(measured, draft.sizes, strict=True)):
        if isinstance(size, ValueError):
            draft.faults.add(BAD_IMAGE, str(size))
        elif height and width and size != (height, width):
            draft.notes.add(
                SIZE_DIFFERS,
                f"{draft.sources[position]}: says {width:g}x{height:g}, {draft.paths[position]} is "
                f"{size[1]}x{size[0]}{_if_turned(size, (height, width))}",
            )
    return np.array([(0, 0) if isinstance(s, ValueError) else s for s in measured], np.int64).reshape(-1, 2)


def _annotated_sizes(draft: Draft) -> list[tuple[int, int] | ValueError]:
    triples = zip(draft.sizes, draft.paths, draft.sources, strict=True)
    return [_annotated_size(h, w, source) if h and w else read_sizes([path])[0] for (h, w), path, source in triples]


def _annotated_size(height: float, width: float, source: str) -> tuple[int, int] | ValueError:
    if 1 <= height <= LONGEST_SIDE and 1 <= width <= LONGEST_SIDE:
        return int(height), int(width)
    return ValueError(f"{source}: an image of {width:g} x {height:g} pixels; correct its size, or leave the image out")


def _if_turned(size: tuple[int, int], annotated: tuple[float, float]) -> str:
    return " when turned upright: was it annotated lying on its side?" if size == annotated[::-1] else ""


def _describe(draft: Draft, position: int, sizes: Int[np.ndarray, "N 2"]) -> str:
    height, width = sizes[draft.owners[position]]
    box = ", ".join(f"{value:g}" for value in draft.boxes[position])
    return f"{draft.where(position)}: ({box}) in {width}x{height}"


def _refuse(draft: Draft, report: Report, way_out: str = "") -> None:
    if report.total == 1:
        raise ValueError(f"{report.format()}{way_out}")
    if report.total:
        raise ValueError(f"{_heading(draft, report)}\n{report.format()}{way_out}")


def _heading(draft: Draft, report: Report) -> str:
    return f"{draft.name} in {draft.root}: {report.total} problem(s) in {len(draft.paths)} images"
