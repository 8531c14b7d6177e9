"""Pictures to boxes: what `rcnn.load` returns."""

from collections.abc import Callable, Sequence
from os import PathLike
from typing import NamedTuple, overload

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from rcnn.data.images import read_image
from rcnn.data.transforms import resize_scales, resize_to_canvas, resized_sizes
from rcnn.inference.collect import original_detections
from rcnn.inference.step import DetectStep
from rcnn.structures import Batch, Canvas

Propose = Callable[[np.ndarray], np.ndarray]
Image = str | PathLike[str] | UInt8[np.ndarray, "h w 3"]


class Result(NamedTuple):
    """The detections of one picture, best first."""

    boxes: Float32[np.ndarray, "n 4"]  # x1, y1, x2, y2 in pixels of the picture as given
    scores: Float32[np.ndarray, "n"]
    labels: Int64[np.ndarray, "n"]  # 1..C
    names: list[str]


class Predictor:
    """Detects on pictures given as paths or as RGB arrays.

    Args:
        classes: names of labels 1..C.
        short: length in pixels to which the shorter side is resized.
        long: limit on the longer side.
        multiple: canvas sides are multiples of this, so that few shapes occur.
        threshold: detections below this score are left out.
        propose: finds the regions (n, 4) of a picture, in its pixels, for a detector without RPN; None: it has one.
    """

    def __init__(
        self,
        step: DetectStep,
        classes: tuple[str, ...],
        *,
        short: int,
        long: int,
        multiple: int,
        threshold: float = 0.0,
        propose: Propose | None = None,
    ) -> None:
        self.step = step
        self.classes = classes
        self.short, self.long, self.multiple = short, long, multiple
        self.threshold = threshold
        self.propose = propose

    @overload
    def __call__(self, images: Image) -> Result: ...
    @overload
    def __call__(self, images: Sequence[Image]) -> list[Result]: ...
    def __call__(self, images: Image | Sequence[Image]) -> Result | list[Result]:
        """Detect on one picture or on a list of them.

        Raises:
            ValueError: a file cannot be read, or an array is not (h, w, 3) uint8.
        """
        if isinstance(images, str | PathLike | np.ndarray):
            return self._detect(images)
        return [self._detect(image) for image in images]

    def _detect(self, image: Image) -> Result:
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            raise ValueError(f"an image must be an (h, w, 3) RGB array of uint8, not {pixels.shape} {pixels.dtype}")
        batch = self._batch(pixels)
        size = (pixels.shape[0], pixels.shape[1])
        found = original_detections(self.step(batch), batch, 0, 0, size, offset=self.step.model.offset)
        keep = found.scores >= self.threshold
        labels = found.labels[keep]
        names = [self.classes[label - 1] for label in labels]
        return Result(found.boxes[keep].astype(np.float32), found.scores[keep], labels, names)

    def _batch(self, pixels: UInt8[np.ndarray, "h w 3"]) -> Batch:
        canvas = self._canvas(pixels.shape[0], pixels.shape[1])
        found = self.propose(pixels) if self.propose else np.zeros((0, 4), np.float32)
        placed, size, scale, found = resize_to_canvas(pixels, found, canvas, self.short, self.long)
        slots = max(len(found), 1) if self.propose else 0  # no slot asks the RPN, an empty one does not
        regions = np.pad(found, ((0, slots - len(found)), (0, 0)))
        empty = torch.zeros(1, 0, dtype=torch.bool)
        return Batch(
            images=torch.from_numpy(placed)[None],
            image_size=torch.tensor([size]),
            scale=torch.tensor([scale], dtype=torch.float32),
            boxes=torch.zeros(1, 0, 4),
            labels=torch.zeros(1, 0, dtype=torch.int64),
            boxes_valid=empty,
            boxes_ignored=empty,
            proposals=torch.from_numpy(regions)[None],
            proposals_valid=(torch.arange(slots) < len(found))[None],
            image_index=torch.zeros(1, dtype=torch.int64),
            seed=torch.zeros(1, dtype=torch.int64),
        )

    def _canvas(self, height: int, width: int) -> Canvas:
        sizes = np.array([[height, width]])
        sides = resized_sizes(sizes, resize_scales(sizes, short=self.short, long=self.long))[0]
        return Canvas(*(-(-sides // self.multiple) * self.multiple).tolist())
