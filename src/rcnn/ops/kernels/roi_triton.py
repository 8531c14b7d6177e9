"""RoIPool and RoIAlign on a GPU: one program a bin and block of channels, which lie side by side in memory.

Backward adds to float32 sums by atomic operations; where PyTorch is asked for deterministic algorithms,
`roi_gather_triton` takes its place.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from rcnn.ops.kernels import roi_gather_triton
from rcnn.ops.kernels.roi_geometry_triton import SIZES, align_axis, align_sample, pool_axis, pool_span, visible_samples

MOST_CHANNELS = 512  # of a program


def roi_align(
    features: Tensor, boxes: Tensor, out: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool, _: int
) -> None:
    """Fill `out` (B R, s, s, F) from features (B, h, w, F) and boxes (B, R, 4), all contiguous."""
    if out.numel():
        _align[_grid(out)](features, boxes, out, *_sizes(features, boxes, out), spatial_scale, sampling_ratio, aligned,
                           _channel_block(out), False, enable_fp_fusion=False)  # fmt: skip


def roi_align_backward(
    grad: Tensor, boxes: Tensor, out: Tensor, spatial_scale: float, sampling_ratio: int, aligned: bool, _: int
) -> None:
    """Fill `out` (B, h, w, F) with the gradient in the features, given that of the result."""
    if torch.are_deterministic_algorithms_enabled():
        roi_gather_triton.roi_align_backward(grad, boxes, out, spatial_scale, sampling_ratio, aligned)
        return
    total = torch.zeros_like(out, dtype=torch.float32)
    if grad.numel():
        _align[_grid(grad)](total, boxes, grad, *_sizes(out, boxes, grad), spatial_scale, sampling_ratio, aligned,
                            _channel_block(grad), True, enable_fp_fusion=False)  # fmt: skip
    out.copy_(total)


def roi_pool(features: Tensor, boxes: Tensor, out: Tensor, argmax: Tensor, spatial_scale: float, _: int) -> None:
    """Fill `out` (B R, s, s, F) with maxima and `argmax` with their cells, unless it is empty."""
    if out.numel():
        where = argmax if argmax.numel() else out
        _pool[_grid(out)](features, boxes, out, where, *_sizes(features, boxes, out), spatial_scale,
                          argmax.numel() > 0, _channel_block(out), enable_fp_fusion=False)  # fmt: skip


def roi_pool_backward(grad: Tensor, boxes: Tensor, argmax: Tensor, out: Tensor, spatial_scale: float, _: int) -> None:
    """Fill `out` (B, h, w, F) with the gradient in the features, given that of the result."""
    if torch.are_deterministic_algorithms_enabled():
        roi_gather_triton.roi_pool_backward(grad, boxes, argmax, out, spatial_scale)
        return
    total = torch.zeros_like(out, dtype=torch.float32)
    if grad.numel():
        bins = boxes.shape[1] * grad.shape[1] ** 2
        _scatter[_grid(grad)](grad, argmax, total, out.shape[1] * out.shape[2], out.shape[3], bins, _channel_block(out))
    out.copy_(total)


def _grid(pooled: Tensor) -> tuple[int, int]:
    rois, size, _, channels = pooled.shape
    return rois * size * size, triton.cdiv(channels, _channel_block(pooled))


def _channel_block(x: Tensor) -> int:
    return min(triton.next_power_of_2(x.shape[3]), MOST_CHANNELS)


def _sizes(features: Tensor, boxes: Tensor, pooled: Tensor) -> tuple[int, ...]:
    """Height, width and channels of the map, RoIs of an image, bins of a side."""
    return *features.shape[1:], boxes.shape[1], pooled.shape[1]


@triton.jit(do_not_specialize=SIZES)
def _align(
    features, boxes, pooled, height, width, channels, rois, size, scale,
    RATIO: tl.constexpr, ALIGNED: tl.constexpr, CHANNELS: tl.constexpr, BACKWARD: tl.constexpr,
):  # fmt: skip
    """One bin: the mean of its samples; or backward, its gradient added to the cells that its samples read."""
    number = tl.program_id(0).to(tl.int64)
    roi, row, column = number // (size * size), number // size % size, number % size
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    features += roi // rois * height * width * channels + channel
    pooled += number * channels + channel
    x1, y1 = tl.load(boxes + 4 * roi), tl.load(boxes + 4 * roi + 1)
    x2, y2 = tl.load(boxes + 4 * roi + 2), tl.load(boxes + 4 * roi + 3)
    top, tall, samples_y, step_y = align_axis(y1, y2, size, scale, RATIO, ALIGNED)
    left, wide, samples_x, step_x = align_axis(x1, x2, size, scale, RATIO, ALIGNED)
    top, left = top + row * tall, left + column * wide
    y_first, y_last = visible_samples(top, step_y, samples_y, height, RATIO)
    x_first, x_last = visible_samples(left, step_x, samples_x, width, RATIO)
    share = tl.div_rn(1.0, tl.maximum(samples_y, 1).to(tl.float32) * tl.maximum(samples_x, 1).to(tl.float32))
    total = tl.zeros([CHANNELS], tl.float32)
    if BACKWARD:
        total = share * tl.load(pooled, mask=inside, other=0.0).to(tl.float32)
    for i in range(y_first, y_last):
        y_low, y_high, y_part, y_counts = align_sample(top, step_y, i, height)
        for j in range(x_first, x_last):
            x_low, x_high, x_part, x_counts = align_sample(left, step_x, j, width)
            if y_counts & x_counts:
                low, high = features + y_low * width * channels, features + y_high * width * channels
                if BACKWARD:
                    tl.atomic_add(
                        low + x_low * channels, (1 - y_part) * (1 - x_part) * total, mask=inside, sem="relaxed"
                    )
                    tl.atomic_add(low + x_high * channels, (1 - y_part) * x_part * total, mask=inside, sem="relaxed")
                    tl.atomic_add(high + x_low * channels, y_part * (1 - x_part) * total, mask=inside, sem="relaxed")
                    tl.atomic_add(high + x_high * channels, y_part * x_part * total, mask=inside, sem="relaxed")
                else:
                    a = tl.load(low + x_low * channels, mask=inside, other=0.0).to(tl.float32)
                    b = tl.load(low + x_high * channels, mask=inside, other=0.0).to(tl.float32)
                    c = tl.load(high + x_low * channels, mask=inside, other=0.0).to(tl.float32)
                    d = tl.load(high + x_high * channels, mask=inside, other=0.0).to(tl.float32)
                    total += (1 - y_part) * ((1 - x_part) * a + x_part * b) + y_part * ((1 - x_part) * c + x_part * d)
    if not BACKWARD:
        tl.store(pooled, total * share, mask=inside)


@triton.jit(do_not_specialize=SIZES)
def _pool(
    features, boxes, pooled, argmax, height, width, channels, rois, size, scale,
    WITH_ARGMAX: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """One bin: its largest feature and the first cell that holds it; 0 and cell -1 where it is empty."""
    number = tl.program_id(0).to(tl.int64)
    roi, row, column = number // (size * size), number // size % size, number % size
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    features += roi // rois * height * width * channels + channel
    x1, y1 = tl.load(boxes + 4 * roi), tl.load(boxes + 4 * roi + 1)
    x2, y2 = tl.load(boxes + 4 * roi + 2), tl.load(boxes + 4 * roi + 3)
    top, tall, finite_y = pool_axis(y1, y2, size, scale)
    left, wide, finite_x = pool_axis(x1, x2, size, scale)
    y_first, y_last = pool_span(top, tall, finite_y, row, height)
    x_first, x_last = pool_span(left, wide, finite_x, column, width)
    best = tl.full([CHANNELS], float("-inf"), tl.float32)
    where = tl.full([CHANNELS], -1, tl.int32)
    for y in range(y_first, y_last):
        for x in range(x_first, x_last):
            cell = y * width + x
            value = tl.load(features + cell * channels, mask=inside, other=0.0).to(tl.float32)
            larger = value > best
            best = tl.where(larger, value, best)
            where = tl.where(larger, cell, where)
    at = number * channels + channel
    tl.store(pooled + at, tl.where(where < 0, 0.0, best), mask=inside)
    if WITH_ARGMAX:
        tl.store(argmax + at, where.to(argmax.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["cells", "bins"])
def _scatter(grad, argmax, total, cells, channels, bins, CHANNELS: tl.constexpr):
    """One bin of RoIPool: its gradient added to the cell of its maximum."""
    number = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    at = number * channels + channel
    cell = tl.load(argmax + at, mask=channel < channels, other=-1).to(tl.int64)
    value = tl.load(grad + at, mask=cell >= 0, other=0.0).to(tl.float32)
    to = (number // bins * cells + cell) * channels + channel
    tl.atomic_add(total + to, value, mask=cell >= 0, sem="relaxed")
