"""Region proposals of a set of images for Fast R-CNN: packed like the records, and matched to them from files."""

import logging
import os
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64

from rcnn.data.proposal_npz import ProposalFile
from rcnn.data.records import Dataset
from rcnn.data.report import Report

TOLERANCE = 1.0  # px that a box may reach outside its image without a word; mx-rcnn's do, scaled back from 600 px
JOINT = re.compile(r"(?<=\.npz|\.mat|\.pkl)\s*\+\s*", re.IGNORECASE)  # a + that is not part of a name
NOT_FINITE = "proposal with a coordinate or score that is no finite number, dropped"
NO_AREA = "proposal without area (x2 < x1 or y2 < y1), dropped"
OUTSIDE = "proposal wholly outside its image, dropped"
CLIPPED = f"proposal reaching more than {TOLERANCE:g} px outside its image, clipped"
# Images of the sets of which files of proposals are passed round. Source: the devkits' and COCO's own lists
KNOWN_SETS = {
    "2007_train": 2501, "2007_val": 2510, "2007_trainval": 5011, "2007_test": 4952,
    "2012_train": 5717, "2012_val": 5823, "2012_trainval": 11540, "2007_trainval+2012_trainval": 16551,
    "train2014": 82783, "val2014": 40504, "valminusminival2014": 35504, "minival2014 or val2017": 5000,
    "train2017": 118287,
}  # fmt: skip

logger = logging.getLogger("rcnn.data")


class ProposalTable:
    """Proposals of all images of a set in a few flat arrays: cheap to pickle, and forked workers never copy it.

    Args:
        boxes: x1 y1 x2 y2 in original pixels by `offset`, those of an image together and best first.
        num_dropped: boxes that `limit` left out.
    """

    def __init__(
        self,
        boxes: Float32[np.ndarray, "T 4"],
        scores: Float32[np.ndarray, "T"],
        num_boxes: Int64[np.ndarray, "N"],
        *,
        offset: float,
        num_dropped: int = 0,
    ) -> None:
        assert len(boxes) == len(scores) == num_boxes.sum(), (len(boxes), len(scores), num_boxes.sum())
        self.boxes, self.scores, self.num_boxes = boxes, scores, num_boxes
        self.offset, self.num_dropped = offset, num_dropped
        self._ends = np.concatenate([[0], np.cumsum(num_boxes)])

    @classmethod
    def from_arrays(
        cls,
        boxes: Sequence[Float[np.ndarray, "_ 4"]],
        scores: Sequence[Float[np.ndarray, "_"]] | None = None,
        *,
        offset: float,
    ) -> "ProposalTable":
        """Packs the proposals of each image, sorted by score; without scores they are best first as they come.

        Raises:
            ValueError: if the images have not as many scores as boxes.
        """
        if scores is None:
            scores = [rank_scores(len(each)) for each in boxes]
        if [len(each) for each in boxes] != [len(each) for each in scores]:
            raise ValueError(
                f"boxes of {len(boxes)} and scores of {len(scores)} images differ in number; give each one"
            )
        pairs = [_sort(b.astype(np.float32), s.astype(np.float32)) for b, s in zip(boxes, scores, strict=True)]
        return cls(
            np.concatenate([np.zeros((0, 4), np.float32), *(pair[0] for pair in pairs)]),
            np.concatenate([np.zeros(0, np.float32), *(pair[1] for pair in pairs)]),
            np.array([len(pair[1]) for pair in pairs], np.int64),
            offset=offset,
        )

    def __len__(self) -> int:
        return len(self.num_boxes)

    def __getitem__(self, index: int) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, "n"]]:
        position = range(len(self))[index]  # negative indices and IndexError as a list has them
        place = slice(self._ends[position], self._ends[position + 1])
        boxes, scores = self.boxes[place], self.scores[place]
        boxes.flags.writeable = scores.flags.writeable = False
        return boxes, scores

    def limit(self, most: int) -> "ProposalTable":
        """The best `most` of each image; `num_dropped` of the result counts the others.

        Raises:
            ValueError: if `most` is less than one.
        """
        if most < 1:
            raise ValueError(f"{most} proposals an image: at least one is needed")
        num_boxes = np.minimum(self.num_boxes, most)
        places = [slice(a, a + n) for a, n in zip(self._ends[:-1].tolist(), num_boxes.tolist(), strict=True)]
        boxes = np.concatenate([self.boxes[:0], *(self.boxes[place] for place in places)])
        scores = np.concatenate([self.scores[:0], *(self.scores[place] for place in places)])
        dropped = self.num_dropped + len(self.boxes) - len(boxes)
        return ProposalTable(boxes, scores, num_boxes, offset=self.offset, num_dropped=dropped)

    def with_offset(self, offset: float) -> "ProposalTable":
        """The same boxes by another pixel convention: x2 and y2 move by the difference."""
        if offset == self.offset:
            return self
        boxes = _with_offset(self.boxes, self.offset, offset)
        return ProposalTable(boxes, self.scores, self.num_boxes, offset=offset, num_dropped=self.num_dropped)


def rank_scores(count: int) -> Float32[np.ndarray, "n"]:
    """Scores of boxes that have none but are best first: from 1 down to 1 / count."""
    return (np.arange(count, 0, -1) / max(count, 1)).astype(np.float32)


def open_proposals(files: str, dataset: Dataset, *, offset: float) -> ProposalTable:
    """Reads the proposals of every image of a data set, and checks them against the images.

    Files that name their images (.npz, a .mat with `images`) may list them in any order, and others too; those that do
    not (.mat, .pkl) must have the images of the set in its order, and no other.

    Args:
        files: a path, or several joined by + as the sets are: a.mat+b.mat for 2007_trainval+2012_trainval.
        offset: the pixel convention of the result; files know their own.

    Raises:
        ValueError: naming the file, what is wrong there, or the image without proposals; if more than half of the
            boxes do not fit their images.
    """
    parts = [_Part(path, _read(path)) for path in split_files(files)]
    named = sum(part.file.image_ids is not None for part in parts)
    if 0 < named < len(parts):
        raise ValueError(f"{files}: some of the files name their images and some do not; open files of one kind")
    places = _places_by_id(parts, dataset, files) if named else _places_by_order(parts, dataset, files)
    return _collect(parts, places, dataset, files, offset)


def split_files(files: str) -> list[str]:
    """Paths joined by +; a + inside a name stays.

    Raises:
        ValueError: if one does not end in .npz, .mat or .pkl.
    """
    paths = [os.path.expanduser(path.strip()) for path in JOINT.split(files)]
    for path in paths:
        if not path.lower().endswith((".npz", ".mat", ".pkl")):
            raise ValueError(
                f"proposals '{path}': expected a file ending in .npz (of rcnn proposals), .mat (selective search) or "
                f".pkl (mx-rcnn); join several with +"
            )
    return paths


class _Part(NamedTuple):
    """One of the files that make up the proposals of a set."""

    path: str
    file: ProposalFile


def _read(path: str) -> ProposalFile:
    from rcnn.data.proposal_mat import read_mat
    from rcnn.data.proposal_npz import read_npz
    from rcnn.data.proposal_pickle import read_pickle

    if not os.path.exists(path):
        raise ValueError(
            f"{path}: no such file; rcnn proposals makes proposals, rcnn download selective_search fetches those of VOC"
        )
    return {".npz": read_npz, ".mat": read_mat, ".pkl": read_pickle}[path[-4:].lower()](path)


def _places_by_id(parts: list[_Part], dataset: Dataset, files: str) -> Int64[np.ndarray, "N 2"]:
    """File and position in it of every image of the data set."""
    known = {dataset[i].image_id: i for i in range(len(dataset))}
    to_known = _as_number if known and all(isinstance(image_id, int) for image_id in known) else str
    places = np.full((len(dataset), 2), -1, np.int64)
    for number, part in enumerate(parts):
        for position, image_id in enumerate(_named(part)):
            index = known.get(to_known(image_id))
            if index is not None and places[index, 0] >= 0:
                first = parts[places[index, 0]].path
                raise ValueError(f"{part.path}: image '{image_id}' comes twice, first in {first}; name it in one place")
            if index is not None:
                places[index] = number, position
    missing = np.flatnonzero(places[:, 0] < 0)
    if len(missing):
        listed = sum(len(_named(part)) for part in parts)
        example = next((f" ('{image_id}', ...)" for part in parts for image_id in _named(part)), "")
        raise ValueError(
            f"{files}: no proposals for image '{dataset[int(missing[0])].image_id}': of the {len(dataset)} images of "
            f"{dataset.name} {len(missing)} are not among the {listed} listed{example}{_probable(listed)}; "
            f"make proposals of this set, or take the set they were made on"
        )
    return places


def _named(part: _Part) -> Sequence[str | int] | np.ndarray:
    assert part.file.image_ids is not None
    return part.file.image_ids


def _as_number(image_id: str | int | np.integer) -> int | str:
    """COCO's ids are numbers; a cell of texts can only spell them."""
    text = str(image_id)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else text


def _places_by_order(parts: list[_Part], dataset: Dataset, files: str) -> Int64[np.ndarray, "N 2"]:
    """File and position in it of every image of the data set, which must be those of the files one after the other."""
    counts = [len(part.file.num_boxes) for part in parts]
    if sum(counts) != len(dataset):
        raise ValueError(
            f"{files}: proposals of {' + '.join(map(str, counts))} images{_probable(sum(counts))}, but {dataset.name} "
            f"has {len(dataset)}{_probable(len(dataset))}; these files do not name their images, so they must be of "
            f"the same set"
        )
    expected = [KNOWN_SETS.get(name.strip(), 0) for name in dataset.name.split("+")]
    if len(expected) == len(counts) and expected != counts and sum(expected) == len(dataset):
        raise ValueError(
            f"{files}: proposals of {' + '.join(map(str, counts))} images, but {dataset.name} has "
            f"{' + '.join(map(str, expected))}; name the files in the order of the sets"
        )
    return np.array([(part, place) for part, n in enumerate(counts) for place in range(n)], np.int64).reshape(-1, 2)


def _probable(count: int) -> str:
    """The set that is known to have so many images, for a message."""
    names = [name for name, size in KNOWN_SETS.items() if size == count]
    return f" (as {names[0]} has)" if names else ""


def _collect(
    parts: list[_Part], places: Int64[np.ndarray, "N 2"], dataset: Dataset, files: str, offset: float
) -> ProposalTable:
    """The boxes of every image, mended and packed."""
    ends = [[0, *np.cumsum(part.file.num_boxes).tolist()] for part in parts]
    total = sum(int(parts[number].file.num_boxes[position]) for number, position in places.tolist())
    boxes, scores = np.empty((total, 4), np.float32), np.empty(total, np.float32)
    num_boxes, report, filled = np.zeros(len(places), np.int64), Report(), 0
    for index, (number, position) in enumerate(places.tolist()):
        file, image = parts[number].file, slice(ends[number][position], ends[number][position + 1])
        ranks = rank_scores(image.stop - image.start) if file.scores is None else file.scores[image]
        found, ranks = _mend(file.boxes[image], ranks, dataset, index, file.offset, report)
        place = slice(filled, filled + len(found))
        boxes[place], scores[place] = _sort(_with_offset(found, file.offset, offset), ranks)
        num_boxes[index], filled = len(found), place.stop
    _judge(report, total, dataset, files)
    return ProposalTable(boxes[:filled], scores[:filled], num_boxes, offset=offset)


def _mend(
    boxes: Float32[np.ndarray, "n 4"],
    scores: Float32[np.ndarray, "n"],
    dataset: Dataset,
    index: int,
    offset: float,
    report: Report,
) -> tuple[Float32[np.ndarray, "k 4"], Float32[np.ndarray, "k"]]:
    """Boxes of an image that can be used, clipped to it; the others are counted."""
    height, width = dataset.sizes[index].tolist()
    x1, y1, x2, y2 = boxes.T
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    has_area = (x2 >= x1) & (y2 >= y1) & (x2 + offset > x1) & (y2 + offset > y1)
    inside = (x1 < width) & (y1 < height) & (x2 + offset > 0) & (y2 + offset > 0)
    clipped = boxes.clip(0, np.array([width, height, width, height], np.float32) - np.float32(offset))
    kept = finite & has_area & inside
    masks = {
        NOT_FINITE: ~finite,
        NO_AREA: finite & ~has_area,
        OUTSIDE: finite & has_area & ~inside,
        CLIPPED: kept & (np.abs(clipped - boxes) > TOLERANCE).any(1),
    }
    for kind, mask in masks.items():
        if bad := np.flatnonzero(mask).tolist():
            box = ", ".join(f"{value:g}" for value in boxes[bad[0]].tolist())
            report.add_many(kind, len(bad), [f"image '{dataset[index].image_id}': ({box}) in {width}x{height}"])
    return clipped[kept], scores[kept]


def _judge(report: Report, total: int, dataset: Dataset, files: str) -> None:
    """Refuses proposals that cannot be those of the data set, and tells of the others that were mended."""
    if 2 * report.total > total:
        raise ValueError(
            f"{files}: {report.total} of {total} boxes do not fit the images of {dataset.name}; they are of other "
            f"images, or not x1 y1 x2 y2 in pixels of the original picture\n{report.format()}"
        )
    if not total and len(dataset):
        raise ValueError(f"{files}: holds no box for any of the {len(dataset)} images of {dataset.name}")
    if report.total:
        logger.warning("%s: %d problem(s) in %d proposals\n%s", files, report.total, total, report.format())


def _sort(
    boxes: Float32[np.ndarray, "n 4"], scores: Float32[np.ndarray, "n"]
) -> tuple[Float32[np.ndarray, "n 4"], Float32[np.ndarray, "n"]]:
    """Best first; of equal scores the order stays."""
    if (scores[1:] <= scores[:-1]).all():
        return boxes, scores
    order = np.argsort(-scores, kind="stable")
    return boxes[order], scores[order]


def _with_offset(boxes: Float32[np.ndarray, "n 4"], old: float, new: float) -> Float32[np.ndarray, "n 4"]:
    return boxes if new == old else boxes + np.array([0, 0, old - new, old - new], np.float32)
