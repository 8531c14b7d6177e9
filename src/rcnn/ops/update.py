"""SGD with momentum on one weight, in one pass where the compiled kernels serve it."""

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
    weight: Float32[Tensor, "*n"], grad: Tensor, buffer: Float32[Tensor, "*n"], low: Tensor | None, rule: Rule
) -> None:
    """Change the weight and its momentum in place, and its bfloat16 copy with it.

    `buffer = momentum * buffer + clamp(grad) + decay * weight; weight -= lr * buffer`.

    Args:
        grad: float32 or bfloat16, as the weight is stored.
        buffer: the momentum; zero before the first step.
        low: receives the new weight in bfloat16; None: there is no such copy.
    """
    arrays = [_as_stored(x) for x in (grad, weight, buffer)]
    module = kernels.module_for(weight.device)
    alike = all(x is None or x.stride() == weight.stride() for x in (grad, buffer, low))
    if module is None or not hasattr(module, "sgd") or not alike or arrays[0] is None:
        return _sgd_reference(weight, grad, buffer, low, rule)
    copy = weight.new_empty(0, dtype=torch.bfloat16) if low is None else _as_stored(low)
    module.sgd(*arrays, copy, *rule, torch.get_num_threads())


def all_finite(tensors: list[Tensor]) -> bool:
    """Whether every element of every tensor is a finite number; asks the host, so it is for tensors on a CPU."""
    return all(_is_finite(x) for x in tensors)


def _is_finite(x: Tensor) -> bool:
    module, stored = kernels.module_for(x.device), _as_stored(x)
    if module is None or not hasattr(module, "all_finite") or stored is None:
        return bool(x.isfinite().all())
    return module.all_finite(stored, torch.get_num_threads())


def _as_stored(x: Tensor) -> Tensor | None:
    """The tensor as one block of memory in the order in which it is stored; None: it is not one block."""
    x = x.detach()
    if x.is_contiguous():
        return x
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1)
    return None


def _sgd_reference(weight: Tensor, grad: Tensor, buffer: Tensor, low: Tensor | None, rule: Rule) -> None:
    grad, weight = grad.detach().float(), weight.detach()
    if rule.clip:
        grad = grad.clamp(-rule.clip, rule.clip)
    buffer.mul_(rule.momentum).add_(grad + rule.decay * weight)
    weight.sub_(rule.lr * buffer)
    if low is not None:
        low.detach().copy_(weight)
