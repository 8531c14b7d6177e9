"""Anchors: the base shapes of a cell, and the grid of a canvas."""

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor


def base_anchors(
    scales: tuple[float, ...], ratios: tuple[float, ...], *, stride: int, offset: float
) -> Float32[Tensor, "a 4"]:
    """Anchors of the first cell, ratio by ratio and in it scale by scale, in canvas pixels.

    With offset 1 the sides are rounded as py-faster-rcnn does; with offset 0 they are exact.
    Source: Faster R-CNN 3.1.1; a ratio is height over width.
    """
    rows = []
    centre = (stride - offset) / 2
    for ratio in ratios:
        width = stride / np.sqrt(ratio)
        height = width * ratio
        if offset:
            width = np.round(width)
            height = np.round(width * ratio)
        for scale in scales:
            half = np.array([width * scale - offset, height * scale - offset]) / 2
            rows.append(np.concatenate([centre - half, centre + half]))
    return torch.tensor(np.array(rows), dtype=torch.float32)


def grid_anchors(base: Float32[Tensor, "a 4"], feature_size: tuple[int, int], *, stride: int) -> Float32[Tensor, "A 4"]:
    """The base anchors on every cell of the feature map, in the order (row, column, anchor)."""
    height, width = feature_size
    y = torch.arange(height, device=base.device, dtype=base.dtype) * stride
    x = torch.arange(width, device=base.device, dtype=base.dtype) * stride
    shift = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1).repeat(1, 2)
    return (shift[:, None, :] + base[None]).reshape(-1, 4)


def cells_on_image(
    image_size: Int64[Tensor, "B 2"], feature_size: tuple[int, int], *, stride: int, num_anchors: int, partial: bool
) -> Bool[Tensor, "B A"]:
    """Which anchors belong to a cell on the picture: wholly, or with `partial` by at least a pixel.

    Without `partial` this is the rule of MXNet's Proposal operator (real height = floor(height / stride)).
    """
    height, width = feature_size
    cells = (image_size + (stride - 1 if partial else 0)) // stride
    rows = torch.arange(height, device=image_size.device)[None] < cells[:, :1]
    columns = torch.arange(width, device=image_size.device)[None] < cells[:, 1:]
    on_image = rows[:, :, None] & columns[:, None, :]
    return on_image[..., None].expand(-1, -1, -1, num_anchors).reshape(image_size.shape[0], -1)


def inside_image(
    anchors: Float32[Tensor, "A 4"], image_size: Int64[Tensor, "B 2"], *, border: float, offset: float
) -> Bool[Tensor, "B A"]:
    """Which anchors cross the picture's edge by at most `border` pixels.

    Source: Faster R-CNN 3.3: anchors that cross the boundary do not train.
    """
    limit = image_size[:, None, :] + border - offset
    inside = (anchors[None, :, :2] >= -border).all(-1)
    return inside & (anchors[None, :, 2] <= limit[..., 1]) & (anchors[None, :, 3] <= limit[..., 0])
