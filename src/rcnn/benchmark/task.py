"""One thing to time, and how a worker times it and counts its work."""

import time
from collections.abc import Callable
from math import prod
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rcnn.ops import convolution, large_linear, linear, stem, weight_gradient, winograd

AWAKE = 0.05  # seconds of work in a row, of which waking is a small part


class Task(NamedTuple):
    """One thing to time."""

    run: Callable[[], object]
    precision: str  # fp32 or bf16, of its convolutions and products
    device: torch.device
    images: int = 0  # done by a run; 0: it is not about images
    head: nn.Module | None = None  # the second stage: its first argument has a row for each RoI
    operator: bool = False  # which in a network other work precedes: it does not find the processor asleep


class Work(NamedTuple):
    """What a run does, however long it takes."""

    flops: int  # of convolutions and matrix products, backward included
    rois: int  # through the second stage


def time_task(task: Task) -> float:
    """Seconds of one run, the device's work included; of an operator, the median of what fits into `AWAKE` seconds."""
    taken = [_time_run(task)]
    while task.operator and sum(taken) < AWAKE:
        taken.append(_time_run(task))
    return median(taken)


def _time_run(task: Task) -> float:
    _wait(task.device)
    begun = time.perf_counter()
    task.run()
    _wait(task.device)
    return time.perf_counter() - begun


def count_work(task: Task) -> Work:
    """Count one run; it also serves as the first warm-up."""
    rois: list[int] = []
    hook = task.head and task.head.register_forward_pre_hook(lambda _, arguments: rois.append(len(arguments[0])))
    try:
        formulas = {
            torch.ops.mkldnn._convolution_pointwise: _convolution,
            torch.ops.mkldnn._linear_pointwise: _linear,
            linear.OPERATOR: _linear,
            large_linear.OPERATOR: _linear,
            large_linear.WEIGHT_OPERATOR: _product_over_rows,
            large_linear.UPDATE_OPERATOR: lambda _, *factors, **__: _product_over_rows(*factors[:2]),
            winograd.OPERATOR: _of_nine_cells,
            convolution.OPERATOR: _of_nine_cells,
            stem.OPERATOR: _stem,
            convolution.GRADIENT: _gradient_of_nine_cells,
            convolution.POOLED: lambda x, *_, out_shape, **__: _of_nine_cells(x, out_shape=out_shape[0]),
            convolution.GRADIENT_OF_POOLED: _gradient_of_nine_cells,
            weight_gradient.OPERATOR: _weight_gradient,
            torch.ops.onednn.qconv2d_pointwise: _quantised,
        }
        counter = FlopCounterMode(display=False, custom_mapping=formulas)
        with torch.compiler.set_stance("force_eager"), counter:
            task.run()
    finally:
        if hook:
            hook.remove()
    return Work(counter.get_total_flops(), sum(rois))


def _convolution(*shapes: Any, out_shape: Any, **_: Any) -> int:
    """FLOPs of oneDNN's convolution of (x, weight, bias), or of (x, map to add, weight, bias)."""
    weight = shapes[2] if len(shapes[2]) == 4 else shapes[1]
    return 2 * prod(out_shape) * prod(weight[1:])


def _of_nine_cells(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """FLOPs of a direct convolution whose map, before it is pooled, is as large as x; of Winograd's the same."""
    return 2 * prod(x) * out_shape[1] * 9


def _stem(x: Any, _first: Any, first_bias: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """FLOPs of both convolutions."""
    between = (x[0], *first_bias, *x[2:])
    return _of_nine_cells(x, out_shape=between) + _of_nine_cells(between, out_shape=out_shape)


def _gradient_of_nine_cells(*_: Any, out_shape: Any, **__: Any) -> int:
    """FLOPs of the gradient of what a convolution sees, which comes with that of its result."""
    return _of_nine_cells(out_shape[1], out_shape=out_shape[0])


def _weight_gradient(grad: Any, x: Any, **_: Any) -> int:
    """FLOPs of the gradient of a weight of 3 x 3 cells."""
    return 2 * prod(grad) * x[1] * 9


def _quantised(x: Any, *others: Any, out_shape: Any, **_: Any) -> int:
    """Operations of oneDNN's convolution in int8 of (x, step, zero point, weight, ...)."""
    return 2 * prod(out_shape) * prod(others[2][1:])


def _linear(x: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    """FLOPs of a linear layer, of oneDNN or our own."""
    return 2 * prod(out_shape) * x[-1]


def _product_over_rows(grad: Any, x: Any, **_: Any) -> int:
    """FLOPs of the gradient of a linear layer's weight."""
    return 2 * prod(grad) * x[-1]


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
