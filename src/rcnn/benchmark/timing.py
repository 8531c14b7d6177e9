"""Repeated timings: in pairs that alternate, so that a machine's slow minutes fall on both sides."""

from collections.abc import Callable
from statistics import median, quantiles
from typing import NamedTuple

WARM_UP = 2


class Spread(NamedTuple):
    """A list of numbers in short."""

    median: float
    low: float
    high: float
    quartiles: tuple[float, float]  # half of the numbers lie between


def spread(values: list[float]) -> Spread:
    """Median, extremes and quartiles."""
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], (values[0], values[0]))
    low, _, high = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), min(values), max(values), (low, high))


def time_alone(run: Callable[[], float], *, runs: int) -> list[float]:
    """What `run` returns, `runs` times after the warm-up."""
    for _ in range(WARM_UP):
        run()
    return [run() for _ in range(runs)]


def time_pairs(ours: Callable[[], float], theirs: Callable[[], float], *, runs: int) -> tuple[list[float], list[float]]:
    """Timings of both sides, taken in turn; who goes first alternates as well."""
    for _ in range(WARM_UP):
        ours()
        theirs()
    pairs = []
    for i in range(runs):
        if i % 2:
            their_time = theirs()
            pairs.append((ours(), their_time))
        else:
            pairs.append((ours(), theirs()))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def ratios(ours: list[float], theirs: list[float]) -> list[float]:
    """How many times as long theirs took, pair by pair."""
    return [b / a for a, b in zip(ours, theirs, strict=True)]
