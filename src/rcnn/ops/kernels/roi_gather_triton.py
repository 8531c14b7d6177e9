"""Gradients of RoIPool and RoIAlign on a GPU in a fixed order: a program a cell, over all RoIs of its image.

Slower than adding by atomic operations, and the same bits every time.
"""

import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.kernels.roi_geometry_triton import SIZES, align_axis, align_weight, pool_axis, pool_span

MOST_CHANNELS = 256  # of a program
NEAR = tl.constexpr(2.0)  # cells: one to the neighbour that a sample is shared with, one for rounding


def roi_align_backward(
    grad: Tensor, boxes: Tensor, out: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool
) -> None:
    """See `roi_triton.roi_align_backward`."""
    if out.numel():
        _align_gather[_grid(out)](grad, boxes, out, *out.shape[1:], boxes.shape[1], grad.shape[1], spatial_scale,
                                  sampling_ratio, aligned, _channel_block(out), enable_fp_fusion=False)  # fmt: skip


def roi_pool_backward(grad: Tensor, boxes: Tensor, argmax: Tensor, out: Tensor, spatial_scale: float) -> None:
    """See `roi_triton.roi_pool_backward`."""
    if out.numel():
        _pool_gather[_grid(out)](grad, boxes, argmax, out, *out.shape[1:], boxes.shape[1], grad.shape[1],
                                 spatial_scale, _channel_block(out), enable_fp_fusion=False)  # fmt: skip


def _grid(out: Tensor) -> tuple[int, int, int]:
    images, height, width, channels = out.shape
    return height * width, triton.cdiv(channels, _channel_block(out)), images


def _channel_block(out: Tensor) -> int:
    return min(triton.next_power_of_2(out.shape[3]), MOST_CHANNELS)


@triton.jit
def _near(begin, length, cell):
    """Whether a sample between `begin` and `begin + length` may have a share in the cell."""
    end = begin + length
    return (tl.minimum(begin, end) <= cell + NEAR) & (tl.maximum(begin, end) >= cell - NEAR)


@triton.jit(do_not_specialize=SIZES)
def _align_gather(
    grad, boxes, out, height, width, channels, rois, size, scale,
    RATIO: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    cell, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    y, x = cell // width, cell % width
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    total = tl.zeros([CHANNELS], tl.float32)
    for number in range(0, rois):
        roi = image * rois + number
        x1, y1 = tl.load(boxes + 4 * roi), tl.load(boxes + 4 * roi + 1)
        x2, y2 = tl.load(boxes + 4 * roi + 2), tl.load(boxes + 4 * roi + 3)
        top, tall, samples_y, step_y = align_axis(y1, y2, size, scale, RATIO, ALIGNED)
        left, wide, samples_x, step_x = align_axis(x1, x2, size, scale, RATIO, ALIGNED)
        if _near(top, tall * size, y) & _near(left, wide * size, x):
            for row in range(0, size):
                weight_y = align_weight(top, tall, samples_y, step_y, row, y, height, RATIO)
                if weight_y != 0:
                    for column in range(0, size):
                        weight = weight_y * align_weight(left, wide, samples_x, step_x, column, x, width, RATIO)
                        if weight != 0:
                            at = ((roi * size + row) * size + column) * channels
                            total += weight * tl.load(grad + at + channel, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + (image * height * width + cell) * channels + channel, total, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _pool_gather(
    grad, boxes, argmax, out, height, width, channels, rois, size, scale, CHANNELS: tl.constexpr
):  # fmt: skip
    cell, image = tl.program_id(0), tl.program_id(2).to(tl.int64)
    y, x = cell // width, cell % width
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    total = tl.zeros([CHANNELS], tl.float32)
    for number in range(0, rois):
        roi = image * rois + number
        x1, y1 = tl.load(boxes + 4 * roi), tl.load(boxes + 4 * roi + 1)
        x2, y2 = tl.load(boxes + 4 * roi + 2), tl.load(boxes + 4 * roi + 3)
        top, tall, finite_y = pool_axis(y1, y2, size, scale)
        left, wide, finite_x = pool_axis(x1, x2, size, scale)
        for row in range(0, size):
            y_first, y_last = pool_span(top, tall, finite_y, row, height)
            if (y >= y_first) & (y < y_last):
                for column in range(0, size):
                    x_first, x_last = pool_span(left, wide, finite_x, column, width)
                    if (x >= x_first) & (x < x_last):
                        at = ((roi * size + row) * size + column) * channels
                        best = tl.load(argmax + at + channel, mask=inside, other=-1).to(tl.int32)
                        value = tl.load(grad + at + channel, mask=inside, other=0.0).to(tl.float32)
                        total += tl.where(best == cell, value, 0.0)
    tl.store(out + (image * height * width + cell) * channels + channel, total, mask=inside)
