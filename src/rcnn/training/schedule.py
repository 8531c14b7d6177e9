"""The learning rate as a function of the step."""

import math
from typing import NamedTuple


class Schedule(NamedTuple):
    """Steps or a cosine, after a linear warm-up. All lengths are in steps."""

    lr: float
    total: int
    warmup: int
    drops: tuple[int, ...] = ()  # steps at which the rate is multiplied by factor
    factor: float = 0.1
    final: float | None = None  # share of lr at the end of a cosine; None: drops

    def __call__(self, step: int) -> float:
        """The rate of the update number `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (0.01 + 0.99 * (step + 1) / self.warmup)
        if self.final is None:
            return self.lr * self.factor ** sum(step >= drop for drop in self.drops)
        progress = (step - self.warmup) / max(1, self.total - self.warmup)
        return self.lr * (self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
