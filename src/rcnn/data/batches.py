"""Records and pictures -> one Batch of static shape; runs in the worker processes."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8

from rcnn.data.epoch import Item
from rcnn.data.images import read_image
from rcnn.data.proposals import ProposalTable
from rcnn.data.records import Dataset, Record
from rcnn.data.transforms import flip_boxes, flip_horizontal, resize_scales, resize_to_canvas, resized_sizes
from rcnn.structures import Batch, Canvas, Limits

OnBadImage = Literal["error", "blank"]


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


class Made(NamedTuple):
    """A batch, or none if it failed, and the messages of bad images."""

    arrays: Arrays | None
    problems: list[str]


class BatchMaker:
    """Makes batches from lists of items.

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

    def make(self, items: Sequence[Item], memory: UInt8[np.ndarray, "n"] | None = None) -> Made:
        """The batch of these items. User errors come back as messages, so that no worker traceback hides them.

        Args:
            memory: to put the pictures into, at its start; None: memory of their own.
        """
        canvas = self._canvas(items[0])
        images = _pictures(memory, (len(items), *canvas, 3))
        arrays = empty_arrays(images, self.limits.ground_truth, self.limits.proposals)
        arrays.seed[:] = [item.seed for item in items]
        problems = []
        for slot, item in enumerate(items):
            try:
                self._fill(arrays, slot, item, canvas)
            except ValueError as error:
                problems.append(str(error))
                if self.on_bad_image == "error":
                    return Made(None, problems)
                images[slot] = 0
        return Made(arrays, problems)

    def largest_canvas(self) -> int:
        """Pixels of the largest canvas that a batch can have."""
        if self.limits.canvases:
            return max(canvas.height * canvas.width for canvas in self.limits.canvases)
        sizes = self.dataset.sizes
        scaled = (resized_sizes(sizes, resize_scales(sizes, short=short, long=long)) for short, long in self.sides)
        return max(int(each.prod(1).max()) for each in scaled)

    def _canvas(self, item: Item) -> Canvas:
        if self.limits.canvases:
            return self.limits.canvases[item.canvas]
        short, long = self._sides(item)
        size = self.dataset.sizes[item.index][None]
        height, width = resized_sizes(size, resize_scales(size, short=short, long=long))[0].tolist()
        return Canvas(height, width)

    def _sides(self, item: Item) -> tuple[int, int]:
        return self.sides[item.canvas // self.groups]

    def _fill(self, arrays: Arrays, slot: int, item: Item, canvas: Canvas) -> None:
        if item.index < 0:
            arrays.images[slot] = 0
            return
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


def empty_arrays(images: UInt8[np.ndarray, "B H W 3"], slots: int, proposals: int = 0) -> Arrays:
    """A batch of these pictures without boxes, whose image_index is -1."""
    batch, *canvas, _ = images.shape
    return Arrays(
        images=images,
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


def to_tensors(arrays: Arrays) -> Batch:
    """The same memory as tensors."""
    return Batch(*map(torch.from_numpy, arrays))


def _pictures(memory: UInt8[np.ndarray, "n"] | None, shape: tuple[int, ...]) -> UInt8[np.ndarray, "B H W 3"]:
    return np.empty(shape, np.uint8) if memory is None else memory[: math.prod(shape)].reshape(shape)


def _check_size(record: Record, shape: tuple[int, ...]) -> None:
    if shape != (record.height, record.width):
        raise ValueError(
            f"{record.path}: is {shape[1]}x{shape[0]} but the data set says {record.width}x{record.height}; "
            f"was the file changed after the set was opened? Start again"
        )
