"""The rate of plain products on this machine: what the rates of networks are shares of."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from rcnn.benchmark.task import Task, time_task

SIZES = {"cpu": 4096, "cuda": 8192}  # of the matrices; a GPU is done with small ones before it is warm
RUNS = 4
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def measure_ceiling(precision: str, device: torch.device, *, size: int = 0) -> float:
    """FLOP a second of the fastest of a few products of n x n matrices; `size` 0: as large as suits the device.

    As a matrix product and as a 1x1 convolution: on a CPU these are two libraries.
    """
    size = size or SIZES[device.type]
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])
    side = 64
    cells = a.view(size // side, side, 1, size).permute(0, 3, 1, 2)
    runs: list[Callable[[], object]] = [lambda: a @ b, lambda: F.conv2d(cells, b[:, :, None, None])]
    with torch.no_grad():
        return max(2 * size**3 / _fastest(run, precision, device) for run in runs)


def _fastest(run: Callable[[], object], precision: str, device: torch.device) -> float:
    task = Task(run, precision, device)
    return min(time_task(task) for _ in range(RUNS))
