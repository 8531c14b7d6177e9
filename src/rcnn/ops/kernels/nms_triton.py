"""Non-maximum suppression on a GPU: all overlaps at once as bits, then one sweep an image; the host asks nothing.

Boxes are sorted best first and taken in blocks of 64. `_overlap_bits` writes, for a box and a block, a word whose bits
are the later boxes of the block that it overlaps too much. `_sweep` has one program an image. It goes from block to
block: the words of the boxes kept so far say which ones are gone. Inside a block the greedy choice is the only solution
of "kept = free and not suppressed by a kept one", found by repetition, as often as its longest chain is long.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BITS = tl.constexpr(64)  # boxes of a block, in a word
MOST_WORDS = 1024  # of kept boxes, read at once
SIZES = ["count", "blocks", "k"]  # a program for each value would be compiled anew


def nms(
    boxes: Tensor, scores: Tensor, valid: Tensor, index: Tensor, kept: Tensor, threshold: float, offset: float, _: int
) -> None:
    """Fill `index` and `kept` (B, k) as `rcnn.ops.nms` returns them; every tensor is contiguous."""
    images, count = scores.shape
    index.zero_()
    kept.zero_()
    if not images * count:
        return
    alive = valid & ~scores.isnan()
    ranked = torch.where(alive, scores + 0.0, -torch.inf)  # + 0.0: -0 becomes 0, to tie with it
    order = ranked.argsort(dim=1, descending=True, stable=True)
    alive = alive.gather(1, order)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    extent = torch.where(alive, torch.arange(1, count + 1, device=boxes.device), 0).amax(1)  # no box is alive beyond
    blocks, k = triton.cdiv(count, BITS.value), index.shape[1]
    words = torch.empty((images, blocks, blocks * BITS.value), dtype=torch.int64, device=boxes.device)
    place = torch.empty((images, k), dtype=torch.int32, device=boxes.device)
    grid = (blocks, blocks, images)  # the products below may not be fused: overlaps round as the reference's do
    _overlap_bits[grid](boxes, extent, words, count, blocks, threshold, offset, enable_fp_fusion=False)
    width = min(triton.next_power_of_2(k), MOST_WORDS)
    _sweep[(images,)](words, alive, order, extent, place, index, kept, count, blocks, k, width, num_warps=8)


@triton.jit
def _side(low, high, offset):
    """The length from one coordinate to another, at least 0; a NaN stays."""
    return tl.maximum(high - low + offset, 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _load_boxes(boxes, at, count):
    """Four coordinates of the boxes at some positions; zeros beyond the last."""
    x1 = tl.load(boxes + 4 * at, mask=at < count, other=0.0)
    y1 = tl.load(boxes + 4 * at + 1, mask=at < count, other=0.0)
    x2 = tl.load(boxes + 4 * at + 2, mask=at < count, other=0.0)
    y2 = tl.load(boxes + 4 * at + 3, mask=at < count, other=0.0)
    return x1, y1, x2, y2


@triton.jit(do_not_specialize=SIZES)
def _overlap_bits(boxes, extent, words, count, blocks, threshold, offset):
    """Words (image, block, box): bit j of a box's word is set where it overlaps box j of the block, a later one."""
    block, row_block, image = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    last = tl.load(extent + image)
    if (block < row_block) | (block * BITS >= last):
        return
    rows, columns = row_block * BITS + tl.arange(0, BITS), block * BITS + tl.arange(0, BITS)
    ax1, ay1, ax2, ay2 = _load_boxes(boxes + image * count * 4, rows, count)
    bx1, by1, bx2, by2 = _load_boxes(boxes + image * count * 4, columns, count)
    a_area = _side(ax1, ax2, offset) * _side(ay1, ay2, offset)
    b_area = _side(bx1, bx2, offset) * _side(by1, by2, offset)
    left = tl.maximum(ax1[:, None], bx1[None, :], propagate_nan=tl.PropagateNan.ALL)
    top = tl.maximum(ay1[:, None], by1[None, :], propagate_nan=tl.PropagateNan.ALL)
    right = tl.minimum(ax2[:, None], bx2[None, :], propagate_nan=tl.PropagateNan.ALL)
    bottom = tl.minimum(ay2[:, None], by2[None, :], propagate_nan=tl.PropagateNan.ALL)
    shared = _side(left, right, offset) * _side(top, bottom, offset)
    union = tl.maximum(a_area[:, None] + b_area[None, :] - shared, 1e-9, propagate_nan=tl.PropagateNan.ALL)
    hit = (tl.div_rn(shared, union) > threshold) & (rows[:, None] < columns[None, :])
    word = tl.sum(hit.to(tl.int64) << tl.arange(0, BITS).to(tl.int64)[None, :], axis=1)
    tl.store(words + (image * blocks + block) * blocks * BITS + rows, word)


@triton.jit
def _either(a, b):
    return a | b


@triton.jit
def _bit(word, lane):
    return ((word >> lane) & 1) != 0


@triton.jit
def _suppressed(own, free, gone, lane):
    """The word of boxes that are suppressed if the free boxes outside the word `gone` are kept."""
    return tl.reduce(tl.where(free & ~_bit(gone, lane), own, 0), 0, _either)


@triton.jit(do_not_specialize=SIZES)
def _sweep(words, alive, order, extent, place, index, kept, count, blocks, k, WIDTH: tl.constexpr):
    """Keep boxes in order until k are kept; `place` (image, k) holds their positions in the order."""
    image = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, BITS).to(tl.int64)
    slot = tl.arange(0, WIDTH)
    words += image * blocks * blocks * BITS
    place += image * k
    last = tl.load(extent + image)
    found = 0
    start = 0
    while (start < last) & (found < k):
        inside = start + lane < count
        position = image * count + start + lane
        own = tl.load(words + start + lane)  # their words in their own block
        free = tl.load(alive + position, mask=inside, other=0) != 0
        source = tl.load(order + position, mask=inside, other=0)
        before = tl.zeros([WIDTH], tl.int64)
        for first in range(0, found, WIDTH):
            row = tl.load(place + first + slot, mask=first + slot < found, other=0)
            before |= tl.load(words + row, mask=first + slot < found, other=0)
        free = free & ~_bit(tl.reduce(before, 0, _either), lane)
        guess = _suppressed(own, free, tl.zeros([], tl.int64), lane)
        gone = _suppressed(own, free, guess, lane)
        while gone != guess:
            guess = gone
            gone = _suppressed(own, free, guess, lane)
        keep = free & ~_bit(gone, lane)
        rank = found + tl.cumsum(keep.to(tl.int32), 0) - 1
        stored = keep & (rank < k)
        tl.store(place + rank, (start + lane).to(tl.int32), mask=stored)
        tl.store(index + image * k + rank, source, mask=stored)
        tl.store(kept + image * k + rank, stored, mask=stored)
        found = found + tl.sum(keep.to(tl.int32), 0)
        tl.debug_barrier()  # other threads read `place` next
        start += BITS
        words += blocks * BITS
