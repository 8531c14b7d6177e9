"""A model over a whole set: batches in, ragged detections or proposals in original pixels out."""

import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

from rcnn import processes
from rcnn.data.loader import Loader
from rcnn.data.records import Dataset
from rcnn.evaluation.results import ImageDetections
from rcnn.inference.step import DetectStep, ProposeStep
from rcnn.ops.boxes import clip
from rcnn.structures import Batch, Detections


class Regions(NamedTuple):
    """The proposals of one image, best first, in original pixels by the model's offset."""

    index: int  # of the image in the data set
    boxes: Float32[np.ndarray, "n 4"]
    scores: Float32[np.ndarray, "n"]


Found = TypeVar("Found", ImageDetections, Regions)


def collect(step: DetectStep, loader: Loader, dataset: Dataset) -> Iterator[ImageDetections]:
    """Detections of every image of the set once, in the loader's order; rank 0 gets those of all processes."""
    made = (_detections(step, batch, dataset) for batch in loader.epoch(0))
    for images in processes.in_turns(made, loader.steps_of_all, _pack, partial(_unpack, ImageDetections)):
        yield from images


def _detections(step: DetectStep, batch: Batch, dataset: Dataset) -> list[ImageDetections]:
    detections, found = step(batch), []
    for row, index in _images(batch):
        record, offset = dataset[index], step.model.offset
        size = (record.height, record.width)
        found.append(original_detections(detections, batch, row, record.image_id, size, offset=offset))
    return found


def collect_proposals(step: ProposeStep, loader: Loader, dataset: Dataset) -> Iterator[Regions]:
    """Proposals of every image of the set once, in the loader's order; rank 0 gets those of all processes."""
    made = (_regions(step, batch, dataset) for batch in loader.epoch(0))
    for images in processes.in_turns(made, loader.steps_of_all, _pack, partial(_unpack, Regions)):
        yield from images


def _regions(step: ProposeStep, batch: Batch, dataset: Dataset) -> list[Regions]:
    proposals, offset, found = step(batch), step.model.offset, []
    for row, index in _images(batch):
        keep, size = proposals.valid[row], (dataset[index].height, dataset[index].width)
        boxes = _original(proposals.boxes[row][keep], batch.scale[row], size, offset)
        has_area = (boxes[:, 2:] + offset > boxes[:, :2]).all(1)  # the picture's edge may cut off all of it
        found.append(Regions(index, boxes[has_area], proposals.scores[row][keep].numpy()[has_area]))
    return found


def _images(batch: Batch) -> list[tuple[int, int]]:
    """Row and index of the batch's images; its empty places are left out."""
    return [(row, index) for row, index in enumerate(batch.image_index.tolist()) if index >= 0]


def _pack(found: Sequence[tuple[Any, ...]]) -> bytes:
    """What was found in some images, to be sent: their names, how much was found in each, and each field of it all."""
    names, *fields = zip(*found, strict=True)
    file, lengths = io.BytesIO(), [len(x) for x in fields[0]]
    np.savez(file, *(np.array(names), np.array(lengths), *map(np.concatenate, fields)))
    return file.getvalue()


def _unpack(kind: type[Found], data: bytes) -> list[Found]:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        names, lengths, *fields = file.values()
    split = [np.split(x, np.cumsum(lengths)[:-1]) for x in fields]
    return [kind(name, *each) for name, *each in zip(names.tolist(), *split, strict=True)]


def original_detections(
    detections: Detections, batch: Batch, row: int, image_id: str | int, size: tuple[int, int], *, offset: float
) -> ImageDetections:
    """The valid detections of one image of a batch, unpadded, in pixels of the original picture of (height, width)."""
    keep = detections.valid[row]
    boxes = _original(detections.boxes[row][keep], batch.scale[row], size, offset)
    return ImageDetections(image_id, boxes, detections.scores[row][keep].numpy(), detections.labels[row][keep].numpy())


def _original(boxes: Tensor, scale: Tensor, size: tuple[int, int], offset: float) -> Float32[np.ndarray, "n 4"]:
    return clip((boxes / scale)[None], torch.tensor([size]), offset=offset)[0].numpy()
