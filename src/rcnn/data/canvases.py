"""The few sizes on which all images of a set are placed: measured once, so that shapes are static."""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from rcnn.data.records import Dataset
from rcnn.data.transforms import resize_scales, resized_sizes
from rcnn.structures import Canvas, Limits


def measure_limits(
    dataset: Dataset,
    *,
    short: int,
    long: int,
    multiple: int,
    per_orientation: int = 3,
    max_boxes: int = 0,
    canvas: Literal["grouped", "exact"] = "grouped",
    sides: tuple[tuple[int, int], ...] = (),
) -> Limits:
    """Ground-truth slots and canvases of a data set.

    Args:
        multiple: sides of canvases are multiples of this.
        per_orientation: canvases for landscape images, and again for portrait ones.
        max_boxes: slots; 0: as many as the fullest image needs.
        canvas: exact: every image gets a canvas of its own size.
        sides: (short, long) of multi-scale training; empty: those of `short` and `long` alone.

    Returns:
        Canvases that hold every image, chosen so that the padded area is the least possible. With several `sides` the
        images are grouped at the first of them, and the canvases of all groups follow for each of the others.
    """
    if sides and canvas == "grouped":
        return _multi_scale(dataset, sides, multiple, per_orientation, max_boxes)
    slots = max_boxes or max(1, int(dataset.num_boxes.max(initial=0)))
    if canvas == "exact":
        return Limits(slots, ())
    sizes = resized_sizes(dataset.sizes, resize_scales(dataset.sizes, short=short, long=long))
    landscape = sizes[:, 1] >= sizes[:, 0]
    wide = _best_canvases(sizes[landscape], multiple, per_orientation)
    tall = _best_canvases(sizes[~landscape][:, ::-1], multiple, per_orientation)
    return Limits(slots, (*(Canvas(*c) for c in wide), *(Canvas(*c[::-1]) for c in tall)))


def _multi_scale(
    dataset: Dataset, sides: tuple[tuple[int, int], ...], multiple: int, per_orientation: int, max_boxes: int
) -> Limits:
    short, long = sides[0]
    base = measure_limits(
        dataset, short=short, long=long, multiple=multiple, per_orientation=per_orientation, max_boxes=max_boxes
    )
    group = choose_canvases(dataset.sizes, base.canvases, short=short, long=long)
    canvases = list(base.canvases)
    for short, long in sides[1:]:
        sizes = resized_sizes(dataset.sizes, resize_scales(dataset.sizes, short=short, long=long))
        padded = -(-sizes // multiple) * multiple
        held = [padded[group == i] for i in range(len(base.canvases))]
        canvases += [Canvas(*rows.max(0, initial=multiple).tolist()) for rows in held]
    return base._replace(canvases=tuple(canvases))


def choose_canvases(
    sizes: Int[np.ndarray, "N 2"], canvases: tuple[Canvas, ...], *, short: int, long: int
) -> Int64[np.ndarray, "N"]:
    """Position of each image's canvas: the smallest that holds it, else the one on which it shrinks least.

    Args:
        sizes: height and width of the original images.
    """
    scales = resize_scales(sizes, short=short, long=long)
    fits = _fits(resized_sizes(sizes, scales), canvases)
    room = np.array(canvases, np.float64)
    areas = room.prod(1)
    shrunk = (room[None] / sizes[:, None]).min(2) / scales[:, None]  # below 1 where it does not fit
    cost = np.where(fits, areas, areas.max() * (3.0 - np.minimum(shrunk, 1.0)))
    return cost.argmin(1).astype(np.int64)


def _fits(sizes: Int[np.ndarray, "N 2"], canvases: tuple[Canvas, ...]) -> Bool[np.ndarray, "N C"]:
    return np.logical_and.reduce(sizes[:, None] <= np.array(canvases), axis=2)


def _best_canvases(sizes: Int[np.ndarray, "N 2"], multiple: int, count: int) -> list[tuple[int, int]]:
    """(short, long) sides of at most `count` canvases of least total area; `sizes` are landscape."""
    if not len(sizes):
        return []
    padded = -(-sizes // multiple) * multiple
    longs = np.unique(padded[:, 1])
    bins = np.searchsorted(longs, padded[:, 1])
    shorts = np.zeros(len(longs), np.int64)
    np.maximum.at(shorts, bins, padded[:, 0])
    heights, costs = _costs(np.bincount(bins, minlength=len(longs)), shorts, longs)
    return [(int(heights[first, last]), int(longs[last])) for first, last in _partition(costs, count)]


def _costs(
    images: Int[np.ndarray, "L"], shorts: Int[np.ndarray, "L"], longs: Int[np.ndarray, "L"]
) -> tuple[Int[np.ndarray, "L L"], Float64[np.ndarray, "L L"]]:
    """Height and total area if one canvas holds the bins first..last, for every pair."""
    size = len(longs)
    heights = np.array([np.maximum.accumulate(np.where(np.arange(size) >= first, shorts, 0)) for first in range(size)])
    before = np.concatenate([[0], np.cumsum(images)])
    held = before[None, 1:] - before[:-1, None]
    return heights, np.where(held > 0, held * heights * longs.astype(np.float64), np.inf)


def _partition(costs: Float64[np.ndarray, "L L"], count: int) -> list[tuple[int, int]]:
    """Splits the bins into at most `count` runs of least total cost, by dynamic programming."""
    size = len(costs)
    best, starts = costs[0].copy(), [np.zeros(size, np.int64)]
    for _ in range(min(count, size) - 1):
        total = np.concatenate([[np.inf], best[:-1]])[:, None] + costs  # [first, last]: a new run from first on
        start = total.argmin(0)
        better = total.min(0) < best
        starts.append(np.where(better, start, -1))
        best = np.where(better, total.min(0), best)
    return _trace_back(starts, size - 1)


def _trace_back(starts: list[Int64[np.ndarray, "L"]], last: int) -> list[tuple[int, int]]:
    runs: list[tuple[int, int]] = []
    for start in reversed(starts):
        first = int(start[last])
        if first < 0:
            continue  # one run fewer was as good
        runs.insert(0, (first, last))
        last = first - 1
        if last < 0:
            break
    return runs
