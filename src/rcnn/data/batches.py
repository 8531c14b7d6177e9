"""Records and pictures -> one Batch of static shape; runs in the worker processes."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from rcnn.data.epoch import Item
from rcnn.data.images import read_image
from rcnn.data.proposals import ProposalTable
from rcnn.data.records import Dataset, Record
from rcnn.data.transforms import flip_boxes, flip_horizontal, resize_scales, resize_to_canvas, resized_sizes
from rcnn.structures import Batch, Canvas, Limits

OnBadImage = Literal["error", "blank"]


class Made(NamedTuple):
    """What a worker hands back: a batch, or none if it failed, and the messages of bad images."""

    batch: Batch | None
    problems: list[str]


class BatchMaker:
    """Makes batches from lists of items; a torch data set whose index is a list of items.

    Args:
        sides: (short, long) to which pictures are resized; an item's canvas tells which.
        proposals: of every image of the set; None: the batches have none.
        on_bad_image: error: a bad image fails its batch; blank: its place stays empty and the message is handed on.
    """

    def __init__(
        self,
        dataset: Dataset,
        limits: Limits,
        *,
        sides: tuple[tuple[int, int], ...],
        offset: float,
        proposals: ProposalTable | None,
        on_bad_image: OnBadImage,
    ):
        self.dataset, self.limits, self.proposals = dataset, limits, proposals
        self.sides, self.offset, self.on_bad_image = sides, offset, on_bad_image
        self.groups = len(limits.canvases) // len(sides) or 1  # canvases of each of the sides

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitems__(self, items: Sequence[Item]) -> Made:
        """The batch of these items. User errors come back as messages, so that no worker traceback hides them."""
        canvas = self._canvas(items[0])
        arrays = empty_arrays(len(items), canvas, self.limits.ground_truth, self.limits.proposals)
        arrays.seed[:] = [item.seed for item in items]
        problems = []
        for slot, item in enumerate(items):
            if item.index < 0:
                continue
            try:
                self._fill(arrays, slot, item, canvas)
            except ValueError as error:
                problems.append(str(error))
                if self.on_bad_image == "error":
                    return Made(None, problems)
        return Made(Batch(*map(torch.from_numpy, arrays)), problems)

    def _canvas(self, item: Item) -> Canvas:
        if self.limits.canvases:
            return self.limits.canvases[item.canvas]
        short, long = self._sides(item)
        size = self.dataset.sizes[item.index][None]
        height, width = resized_sizes(size, resize_scales(size, short=short, long=long))[0].tolist()
        return Canvas(height, width)

    def _sides(self, item: Item) -> tuple[int, int]:
        return self.sides[item.canvas // self.groups]

    def _fill(self, arrays: "Arrays", slot: int, item: Item, canvas: Canvas) -> None:
        record = self.dataset[item.index]
        image, boxes = read_image(record.path), record.boxes
        _check_size(record, image.shape[:2])
        if item.flip:
            image, boxes = flip_horizontal(image, boxes, self.offset)
        _, size, scale, boxes = resize_to_canvas(image, boxes, canvas, *self._sides(item), out=arrays.images[slot])
        count = len(boxes)
        arrays.image_size[slot], arrays.scale[slot], arrays.image_index[slot] = size, scale, item.index
        arrays.boxes[slot, :count], arrays.labels[slot, :count] = boxes, record.labels
        arrays.boxes_valid[slot, :count], arrays.boxes_ignored[slot, :count] = ~record.ignore, record.ignore
        if self.proposals is not None:
            found, _ = self.proposals[item.index]
            found = flip_boxes(found, record.width, self.offset) if item.flip else found
            arrays.proposals[slot, : len(found)] = found * np.float32(scale)
            arrays.proposals_valid[slot, : len(found)] = True


class Arrays(NamedTuple):
    """The fields of a Batch as numpy arrays."""

    images: np.ndarray
    image_size: np.ndarray
    scale: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    boxes_valid: np.ndarray
    boxes_ignored: np.ndarray
    proposals: np.ndarray
    proposals_valid: np.ndarray
    image_index: np.ndarray
    seed: np.ndarray


def empty_arrays(batch: int, canvas: Canvas, slots: int, proposals: int = 0) -> Arrays:
    """A batch of empty places: black canvases without boxes, whose image_index is -1."""
    return Arrays(
        images=np.zeros((batch, *canvas, 3), np.uint8),
        image_size=np.tile(np.array(canvas, np.int64), (batch, 1)),
        scale=np.ones(batch, np.float32),
        boxes=np.zeros((batch, slots, 4), np.float32),
        labels=np.zeros((batch, slots), np.int64),
        boxes_valid=np.zeros((batch, slots), np.bool_),
        boxes_ignored=np.zeros((batch, slots), np.bool_),
        proposals=np.zeros((batch, proposals, 4), np.float32),
        proposals_valid=np.zeros((batch, proposals), np.bool_),
        image_index=np.full(batch, -1, np.int64),
        seed=np.zeros(batch, np.int64),
    )


def _check_size(record: Record, shape: tuple[int, ...]) -> None:
    if shape != (record.height, record.width):
        raise ValueError(
            f"{record.path}: is {shape[1]}x{shape[0]} but the data set says {record.width}x{record.height}; "
            f"was the file changed after the set was opened? Start again"
        )
