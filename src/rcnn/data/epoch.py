"""Which image stands where in an epoch: a function of (seed, epoch) alone, the same in every process."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Int64, UInt64

Flip = Literal["none", "random", "both"]


class Item(NamedTuple):
    """One place in a batch."""

    index: int  # of the image in the data set; -1: the place is empty
    flip: bool
    seed: int
    canvas: int  # position in the limits' canvases


class EpochPlan(NamedTuple):
    """The batches of one epoch: S steps of B places, of all processes or of one."""

    index: Int64[np.ndarray, "S B"]
    flip: Bool[np.ndarray, "S B"]
    seed: Int64[np.ndarray, "S B"]
    canvas: Int64[np.ndarray, "S"]

    def batches(self, start: int) -> Iterator[list[Item]]:
        """The items of each step from `start` on."""
        for step in range(start, len(self.canvas)):
            canvas = int(self.canvas[step])
            rows = zip(self.index[step].tolist(), self.flip[step].tolist(), self.seed[step].tolist(), strict=True)
            yield [Item(index, flip, seed, canvas) for index, flip, seed in rows]

    def places(self, first: int, count: int) -> "EpochPlan":
        """So many places of every step from `first` on; those beyond the batch are empty."""
        part = slice(first, first + count)
        missing = ((0, 0), (0, count - self.index[:, part].shape[1]))
        index = np.pad(self.index[:, part], missing, constant_values=-1)
        return EpochPlan(index, np.pad(self.flip[:, part], missing), np.pad(self.seed[:, part], missing), self.canvas)

    def every(self, first: int, stride: int) -> "EpochPlan":
        """Whole steps, from `first` on each one of `stride`."""
        return EpochPlan(*(x[first::stride] for x in self))


def plan_epoch(
    canvas_of: Int64[np.ndarray, "N"],
    *,
    batch: int,
    flip: Flip,
    shuffle: bool,
    drop_last: bool,
    seed: int,
    epoch: int,
    scales: int = 1,
    groups: int = 1,
) -> EpochPlan:
    """Cuts the images of each canvas into the batches of all processes together, a canvas a step.

    Places that are left over in a canvas's last batch take images of the same canvas once more if shuffled (training),
    and stay empty if not (evaluation). Unlike mx-rcnn (which meant to), images and batches are shuffled.

    Args:
        canvas_of: position of each image's canvas.
        flip: both: the epoch holds every image and its mirror image; random: a coin decides.
        scales: of multi-scale training: each step draws one, whose `groups` canvases come after those of the former.
    """
    generator = np.random.default_rng([_unsigned(seed), epoch])
    images = len(canvas_of)
    entries = np.arange(2 * images if flip == "both" else images)
    canvases, rows = [], []
    for canvas in np.unique(canvas_of):
        members = entries[canvas_of[entries % images] == canvas]
        rows.append(_cut(members, batch, generator if shuffle else None, drop_last))
        canvases.append(np.full(len(rows[-1]), canvas))
    order, canvas_of_step = np.concatenate(rows), np.concatenate(canvases)
    if shuffle:
        shuffled = generator.permutation(len(order))
        order, canvas_of_step = order[shuffled], canvas_of_step[shuffled]
    if scales > 1:
        canvas_of_step = canvas_of_step + generator.integers(scales, size=len(order)) * groups
    seeds = hash_positions(seed, epoch, np.arange(order.size).reshape(order.shape))
    flips = seeds >> 62 & 1 == 1 if flip == "random" else order >= images
    index = np.where(order < 0, -1, order % images)
    return EpochPlan(index, flips, seeds, canvas_of_step)


def hash_positions(seed: int, epoch: int, positions: Int64[np.ndarray, "*shape"]) -> Int64[np.ndarray, "*shape"]:
    """A number of 63 random bits for each position of an epoch."""
    state = _mix(_mix(np.array([_unsigned(seed)], np.uint64)) + np.uint64(epoch))
    return (_mix(state + positions.astype(np.uint64)) >> np.uint64(1)).astype(np.int64)


def _mix(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Scrambles 64 bits. Source: Steele, Lea, Flood 2014, SplitMix64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _unsigned(seed: int) -> int:
    return seed % 2**64


def _cut(
    members: Int64[np.ndarray, "M"], size: int, generator: np.random.Generator | None, drop_last: bool
) -> Int64[np.ndarray, "_ size"]:
    """Rows of `size` entries; what is missing in the last one is drawn again, or -1 without a generator."""
    if generator is not None:
        members = generator.permutation(members)
    missing = -len(members) % size
    if missing and drop_last:
        members = members[: len(members) - len(members) % size]
    elif missing and generator is not None:
        members = np.concatenate([members, np.resize(generator.permutation(members), missing)])
    elif missing:
        members = np.concatenate([members, np.full(missing, -1)])
    return members.reshape(-1, size)
