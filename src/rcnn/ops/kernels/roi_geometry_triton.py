"""Which cells a bin of a RoI reads, and with which weights; one axis at a time. `rcnn.ops.roi` says the rules.

The kernels that use it are launched without fused products, so that corners and samples round as the reference's do.
"""

import triton
import triton.language as tl

MOST_SAMPLES = tl.constexpr(1e9)
SIZES = ["height", "width", "rois", "size"]  # for do_not_specialize: Triton makes a constant of a 1, which has no type


@triton.jit
def _is_finite(x):
    return tl.abs(x) < float("inf")


@triton.jit
def _clamp(x, low, high):
    return tl.minimum(tl.maximum(x, low), high)


@triton.jit
def align_axis(low, high, size, scale, RATIO: tl.constexpr, ALIGNED: tl.constexpr):
    """Where the RoI begins, the length of a bin, the samples of a bin and their distance; in cells."""
    shift: tl.constexpr = 0.5 if ALIGNED else 0.0
    begin = low * scale - shift
    length = (high * scale - shift) - begin
    if not ALIGNED:
        length = tl.maximum(length, 1.0)
    finite = _is_finite(begin) & _is_finite(length)
    bin_length = tl.div_rn(tl.where(finite, length, 0.0), size.to(tl.float32))
    if RATIO > 0:
        samples = tl.where(finite, RATIO, 0)
    else:
        samples = tl.where(finite, _clamp(tl.ceil(bin_length), 0.0, MOST_SAMPLES), 0.0).to(tl.int32)
    step = tl.div_rn(bin_length, tl.maximum(samples, 1).to(tl.float32))
    return begin, bin_length, samples, step


@triton.jit
def visible_samples(start, step, samples, cells, RATIO: tl.constexpr):
    """The samples [first, last) that can lie on the map; a RoI far larger than it has millions outside."""
    if RATIO > 0:
        first, last = samples * 0, samples
    else:
        positive = tl.where(step > 0, step, 1.0)
        most = samples.to(tl.float32)
        first = _clamp(tl.div_rn(-1.0 - start, positive) - 2.0, 0.0, most).to(tl.int32)
        last = _clamp(tl.div_rn(cells.to(tl.float32) - start, positive) + 2.0, 0.0, most).to(tl.int32)
    return first, last


@triton.jit
def align_sample(start, step, sample, cells):
    """The two cells between which a sample lies, the second one's weight, and whether it lies on the map."""
    at = start + (sample + 0.5) * step
    counts = (at >= -1.0) & (at <= cells.to(tl.float32))
    at = _clamp(at, 0.0, (cells - 1).to(tl.float32))
    low = at.to(tl.int32)
    return low, tl.minimum(low + 1, cells - 1), at - low.to(tl.float32), counts


@triton.jit
def align_weight(begin, bin_length, samples, step, number, cell, cells, RATIO: tl.constexpr):
    """How much a cell weighs in a bin: the mean over the bin's samples."""
    start = begin + number * bin_length
    first, last = visible_samples(start, step, samples, cells, RATIO)
    total = start * 0.0
    for sample in range(first, last):
        low, high, part, counts = align_sample(start, step, sample, cells)
        weight = tl.where(low == cell, 1.0 - part, 0.0) + tl.where(high == cell, part, 0.0)
        total += tl.where(counts, weight, 0.0)
    return tl.div_rn(total, tl.maximum(samples, 1).to(tl.float32))


@triton.jit
def _round_half_away(x):
    """Round as C does."""
    whole = tl.where(x >= 0, tl.floor(x), tl.ceil(x))
    away = tl.where(tl.abs(x - whole) >= 0.5, 1.0, 0.0)
    return whole + tl.where(x >= 0, away, -away)


@triton.jit
def pool_axis(low, high, size, scale):
    """The cell where the RoI begins, the length of a bin in cells, and whether both corners are finite."""
    begin, end = _round_half_away(low * scale), _round_half_away(high * scale)
    finite = _is_finite(begin) & _is_finite(end)
    bin_length = tl.div_rn(tl.maximum(end - begin + 1.0, 1.0), size.to(tl.float32))
    return begin, bin_length, finite


@triton.jit
def pool_span(begin, bin_length, finite, number, cells):
    """The cells [first, last) of a bin."""
    most = cells.to(tl.float32)
    first = _clamp(tl.floor(number * bin_length) + begin, 0.0, most)
    last = _clamp(tl.ceil((number + 1) * bin_length) + begin, 0.0, most)
    return tl.where(finite, first, 0.0).to(tl.int32), tl.where(finite, last, 0.0).to(tl.int32)
