"""Geometry of boxes (x1, y1, x2, y2): the only place that knows the pixel convention.

`offset` is 1.0 where a box includes its last pixel (width = x2 - x1 + 1: Caffe, MXNet, VOC) and 0.0 where coordinates
are continuous (torchvision, detectron2).
"""

import math

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

MAX_LOG_SCALE = math.log(1000 / 16)  # a box grows at most this much in one regression; keeps exp() finite


def area(boxes: Float32[Tensor, "*n 4"], *, offset: float) -> Float32[Tensor, "*n"]:
    """Area in square pixels; 0 for an inside-out box."""
    width = (boxes[..., 2] - boxes[..., 0] + offset).clamp(min=0)
    height = (boxes[..., 3] - boxes[..., 1] + offset).clamp(min=0)
    return width * height


def intersection(
    a: Float32[Tensor, "B N 4"], b: Float32[Tensor, "B M 4"], *, offset: float
) -> Float32[Tensor, "B N M"]:
    """Area in square pixels that each box of `a` shares with each of `b`."""
    left = torch.maximum(a[:, :, None, 0], b[:, None, :, 0])
    top = torch.maximum(a[:, :, None, 1], b[:, None, :, 1])
    right = torch.minimum(a[:, :, None, 2], b[:, None, :, 2])
    bottom = torch.minimum(a[:, :, None, 3], b[:, None, :, 3])
    return (right - left + offset).clamp(min=0) * (bottom - top + offset).clamp(min=0)


def iou(a: Float32[Tensor, "B N 4"], b: Float32[Tensor, "B M 4"], *, offset: float) -> Float32[Tensor, "B N M"]:
    """Intersection over union of each box of `a` with each of `b`; 0 where both are empty."""
    shared = intersection(a, b, offset=offset)
    union = area(a, offset=offset)[:, :, None] + area(b, offset=offset)[:, None, :] - shared
    return shared / union.clamp(min=1e-9)


def covered(a: Float32[Tensor, "B N 4"], b: Float32[Tensor, "B M 4"], *, offset: float) -> Float32[Tensor, "B N M"]:
    """Share of each box of `a` that lies in each of `b`."""
    return intersection(a, b, offset=offset) / area(a, offset=offset)[:, :, None].clamp(min=1e-9)


def clip(
    boxes: Float32[Tensor, "B *n 4"], image_size: Int64[Tensor, "B 2"], *, offset: float
) -> Float32[Tensor, "B *n 4"]:
    """Boxes cut to their picture; `image_size` is (height, width) in the frame of the boxes."""
    limit = (image_size.flip(1) - offset).to(boxes.dtype).repeat(1, 2)  # width, height, width, height
    limit = limit.view(limit.shape[0], *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limit)


def _centre_form(boxes: Tensor, offset: float) -> tuple[Tensor, Tensor]:
    size = boxes[..., 2:] - boxes[..., :2] + offset
    return boxes[..., :2] + 0.5 * (size - offset), size


def encode(
    source: Float32[Tensor, "*n 4"], target: Float32[Tensor, "*n 4"], *, offset: float
) -> Float32[Tensor, "*n 4"]:
    """Regression (dx, dy, dw, dh) that takes each `source` box to its `target`; finite for empty boxes too.

    Source: R-CNN, appendix C, equations 6-9.
    """
    centre, size = _centre_form(source, offset)
    target_centre, target_size = _centre_form(target, offset)
    size = size.clamp(min=1e-3)
    return torch.cat([(target_centre - centre) / size, (target_size.clamp(min=1e-3) / size).log()], dim=-1)


def decode(
    source: Float32[Tensor, "*#n 4"], deltas: Float32[Tensor, "*#n 4"], *, offset: float, beyond: float = 0.0
) -> Float32[Tensor, "*m 4"]:
    """Boxes that `deltas` make of `source`, broadcast over leading axes; the inverse of `encode`.

    Args:
        beyond: pixels added to x2 and y2. py-faster-rcnn forgets the offset there, so that its models need 1.

    Source: R-CNN, appendix C, equations 1-4. Differs: dw, dh are limited to log(1000 / 16), as in detectron.
    """
    centre, size = _centre_form(source, offset)
    new_centre = centre + deltas[..., :2] * size
    half = 0.5 * (size * deltas[..., 2:].clamp(max=MAX_LOG_SCALE).exp() - offset)
    return torch.cat([new_centre - half, new_centre + half + beyond], dim=-1)
