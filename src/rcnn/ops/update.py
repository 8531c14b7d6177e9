"""SGD with momentum on one weight, in one pass where the compiled kernels serve it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float32
from torch import Tensor

from rcnn.ops import kernels


class Rule(NamedTuple):
    """What a step of SGD does to a weight."""

    lr: float
    momentum: float
    decay: float
    clip: float  # every element of the gradient is clamped to [-clip, clip]; 0: is not


def sgd_(
    weight: Float32[Tensor, "*n"],
    grads: Sequence[Tensor],
    buffer: Float32[Tensor, "*n"],
    low: Tensor | None,
    rule: Rule,
) -> None:
    """Change the weight and its momentum in place, and its bfloat16 copy with it.

    `buffer = momentum * buffer + clamp(mean(grads)) + decay * weight; weight -= lr * buffer`.

    Args:
        grads: float32 or bfloat16, as the weight is stored; their order is that of their sum.
        buffer: the momentum; zero before the first step.
        low: receives the new weight in bfloat16; None: there is no such copy.
    """
    arrays = [_as_stored(x) for x in (weight, buffer)]
    parts = [_as_stored(x) for x in grads]
    module = kernels.module_for(weight.device)
    alike = all(x is None or x.stride() == weight.stride() for x in (*grads, buffer, low))
    if module is None or not hasattr(module, "sgd") or not alike or arrays[0] is None:
        return sgd_reference(weight, grads, buffer, low, rule)
    copy = weight.new_empty(0, dtype=torch.bfloat16) if low is None else _as_stored(low)
    module.sgd(parts, *arrays, copy, *rule, torch.get_num_threads())


def all_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether every element of every tensor is a finite number; asks the host, so it is for tensors on a CPU."""
    return all(_is_finite(x) for x in tensors)


def copy_finite(x: Tensor, to: Tensor) -> bool:
    """Copy the tensor, and say whether all that was written is finite; float32 may be rounded to bfloat16 by it."""
    module, stored, place = kernels.module_for(x.device), _as_stored(x), _as_stored(to)
    alike = stored is not None and x.stride() == to.stride() and x.dtype.itemsize >= to.dtype.itemsize
    if module is None or not hasattr(module, "all_finite") or not alike:
        return bool(to.copy_(x.detach()).isfinite().all())
    return module.all_finite(stored, place, torch.get_num_threads())


def _is_finite(x: Tensor) -> bool:
    module, stored = kernels.module_for(x.device), _as_stored(x)
    if module is None or not hasattr(module, "all_finite") or stored is None:
        return bool(x.isfinite().all())
    return module.all_finite(stored, x.new_empty(0), torch.get_num_threads())


def _as_stored(x: Tensor) -> Tensor | None:
    """The tensor as one block of memory in the order in which it is stored; None: it is not one block."""
    x = x.detach()
    if x.is_contiguous():
        return x
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return None


def sgd_reference(weight: Tensor, grads: Sequence[Tensor], buffer: Tensor, low: Tensor | None, rule: Rule) -> None:
    """Compute `sgd_` one after the other."""
    grad, weight = torch.stack([x.detach().float() for x in grads]).mean(0), weight.detach()
    if rule.clip:
        grad = grad.clamp(-rule.clip, rule.clip)
    buffer.mul_(rule.momentum).add_(grad + rule.decay * weight)
    weight.sub_(rule.lr * buffer)
    if low is not None:
        low.detach().copy_(weight)
