"""A model over a whole set: batches in, ragged detections in original pixels out."""

from collections.abc import Iterator

import torch

from rcnn.data.loader import Loader
from rcnn.data.records import Dataset
from rcnn.evaluation.results import ImageDetections
from rcnn.inference.step import DetectStep
from rcnn.ops.boxes import clip
from rcnn.structures import Batch, Detections


def collect(step: DetectStep, loader: Loader, dataset: Dataset) -> Iterator[ImageDetections]:
    """Detections of every image of the set once, in the loader's order."""
    for batch in loader.epoch(0):
        detections = step(batch)
        for row, index in enumerate(batch.image_index.tolist()):
            if index >= 0:
                record = dataset[index]
                size = (record.height, record.width)
                yield original_detections(detections, batch, row, record.image_id, size, offset=step.model.offset)


def original_detections(
    detections: Detections, batch: Batch, row: int, image_id: str | int, size: tuple[int, int], *, offset: float
) -> ImageDetections:
    """The valid detections of one image of a batch, unpadded, in pixels of the original picture of (height, width)."""
    keep = detections.valid[row]
    boxes = (detections.boxes[row][keep] / batch.scale[row])[None]
    boxes = clip(boxes, torch.tensor([size]), offset=offset)[0]
    scores, labels = detections.scores[row][keep], detections.labels[row][keep]
    return ImageDetections(image_id, boxes.numpy(), scores.numpy(), labels.numpy())
