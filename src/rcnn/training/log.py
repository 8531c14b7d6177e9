"""The log of a run: a line an interval on the console and in metrics.jsonl."""

import json
import resource
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor

from rcnn import processes
from rcnn.atomic import replacing
from rcnn.structures import Batch

SCALARS = ("loss", "rpn_cls", "rpn_box", "head_cls", "head_box", "rpn_accuracy", "head_accuracy")


class NonFiniteLossError(ValueError):
    """The loss became infinite or NaN; says on which images."""


class Log:
    """Collects device scalars and reads them once an interval, those of all processes; rank 0 alone writes.

    Args:
        name_image: turns an index in the data set into what the user knows the image by.
    """

    def __init__(self, path: Path, *, every: int, total: int, name_image: Callable[[int], str]) -> None:
        self.path = path
        self.every = every
        self.total = total
        self.name_image = name_image
        self._names: list[str] = []  # of SCALARS, those that the method has
        self._pending: list[tuple[int, Tensor, Tensor]] = []
        self._images = 0
        self._since = time.perf_counter()
        self._begun: tuple[int, float] | None = None

    def rewind(self, step: int) -> None:
        """Drop the lines after `step`, which a resumed run writes again, and one that was not finished."""
        if processes.rank() or not self.path.is_file():
            return
        lines = self.path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith(b"\n") and json.loads(line)["step"] <= step]
        with replacing(self.path) as file:
            file.write(b"".join(kept))

    def add(self, step: int, epoch: float, lr: float, scalars: dict[str, Tensor], batch: Batch) -> None:
        """Take the scalars of the update that ended as number `step` (from 1)."""
        if self._begun is None:
            self._begun = (step - 1, self._since)
        self._names = [name for name in SCALARS if name in scalars]
        values = torch.stack([scalars[name].float() for name in self._names])
        self._pending.append((step, values, batch.image_index))
        self._images += int((batch.image_index >= 0).sum())
        if step % self.every == 0 or step == self.total:
            self.flush(epoch, lr)

    def flush(self, epoch: float, lr: float) -> None:
        """Read what is pending, write the line.

        Raises:
            NonFiniteLossError: naming the images of the first bad batch.
        """
        if not self._pending:
            return
        values = processes.gather(torch.stack([scalars for _, scalars, _ in self._pending]))
        self._refuse_non_finite(values, lr)
        images, memory = processes.gather(torch.tensor([self._images, _peak_memory()])).unbind(1)
        step = self._pending[-1][0]
        elapsed = time.perf_counter() - self._since
        row = {"step": step, "epoch": round(epoch, 4), "lr": lr}
        row |= dict.fromkeys(SCALARS)  # None stays where RPN or head is not trained
        row |= dict(zip(self._names, values.mean((0, 1)).tolist(), strict=True))
        row |= {"images_per_second": int(images.sum()) / elapsed, "memory_bytes": int(memory.max())}
        if processes.rank() == 0:
            with self.path.open("a") as file:
                file.write(json.dumps(row) + "\n")
        print(self._line(row), file=sys.stderr, flush=True)
        self._pending, self._images, self._since = [], 0, time.perf_counter()

    def _refuse_non_finite(self, values: Float32[Tensor, "W n k"], lr: float) -> None:
        for (step, _, indices), rows in zip(self._pending, values.unbind(1), strict=True):
            if rows[:, 0].isfinite().all():
                continue
            guilty = ~rows[:, 1:].isfinite().all(1)  # a process whose loss was good is told of another's bad one
            images = processes.gather(indices)[guilty if guilty.any() else ~guilty].flatten()
            names = ", ".join(self.name_image(i) for i in images.tolist() if i >= 0)
            means = zip(self._names, rows.mean(0).tolist(), strict=True)
            parts = ", ".join(f"{name} {value:.4g}" for name, value in means)
            raise NonFiniteLossError(
                f"the loss is not finite at step {step} ({parts}); images of the batch: {names}. The learning rate "
                f"was {lr:g}: lower it (--train.lr) or warm up longer (--train.warmup); the weights of the last "
                f"checkpoint are good (--resume)"
            )

    def _line(self, row: dict[str, Any]) -> str:
        begun_step, begun = self._begun or (0, self._since)
        per_step = (time.perf_counter() - begun) / max(1, row["step"] - begun_step)
        left = per_step * (self.total - row["step"])
        return (
            f"step {row['step']}/{self.total}  epoch {row['epoch']:.2f}  lr {row['lr']:.2e}  loss {row['loss']:.4f}"
            f"  ({', '.join(part for part in map(partial(_part, row), ('rpn', 'head')) if part)})"
            f"  {row['images_per_second']:.2f} img/s  {int(left // 60)}:{int(left % 60):02d} left"
        )


def _part(row: dict[str, Any], name: str) -> str:
    """The two losses and the accuracy of RPN or head, where that is trained."""
    if row[f"{name}_cls"] is None:
        return ""
    return f"{name} {row[f'{name}_cls']:.3f} + {row[f'{name}_box']:.3f}, right {row[f'{name}_accuracy']:.1%}"


def _peak_memory() -> int:
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    kilobyte = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilobyte
