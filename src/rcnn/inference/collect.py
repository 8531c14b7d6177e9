"""A model over a whole set: batches in, ragged detections or proposals in original pixels out."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32
from torch import Tensor

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


def collect(step: DetectStep, loader: Loader, dataset: Dataset) -> Iterator[ImageDetections]:
    """Detections of every image of the set once, in the loader's order."""
    for batch in loader.epoch(0):
        detections = step(batch)
        for row, index in enumerate(batch.image_index.tolist()):
            if index >= 0:
                record = dataset[index]
                size = (record.height, record.width)
                yield original_detections(detections, batch, row, record.image_id, size, offset=step.model.offset)


def collect_proposals(step: ProposeStep, loader: Loader, dataset: Dataset) -> Iterator[Regions]:
    """Proposals of every image of the set once, in the loader's order."""
    for batch in loader.epoch(0):
        proposals = step(batch)
        for row, index in enumerate(batch.image_index.tolist()):
            if index >= 0:
                keep, offset = proposals.valid[row], step.model.offset
                size = (dataset[index].height, dataset[index].width)
                boxes = _original(proposals.boxes[row][keep], batch.scale[row], size, offset)
                has_area = (boxes[:, 2:] + offset > boxes[:, :2]).all(1)  # the picture's edge may cut off all of it
                yield Regions(index, boxes[has_area], proposals.scores[row][keep].numpy()[has_area])


def original_detections(
    detections: Detections, batch: Batch, row: int, image_id: str | int, size: tuple[int, int], *, offset: float
) -> ImageDetections:
    """The valid detections of one image of a batch, unpadded, in pixels of the original picture of (height, width)."""
    keep = detections.valid[row]
    boxes = _original(detections.boxes[row][keep], batch.scale[row], size, offset)
    return ImageDetections(image_id, boxes, detections.scores[row][keep].numpy(), detections.labels[row][keep].numpy())


def _original(boxes: Tensor, scale: Tensor, size: tuple[int, int], offset: float) -> Float32[np.ndarray, "n 4"]:
    return clip((boxes / scale)[None], torch.tensor([size]), offset=offset)[0].numpy()
