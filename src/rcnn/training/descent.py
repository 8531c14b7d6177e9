"""One step of SGD on a CPU, each weight in one pass, and the bfloat16 copies of large weights that it keeps."""

from typing import Any

import torch
from torch import Tensor, nn

from rcnn.ops.update import Rule, all_finite, sgd_
from rcnn.training.exchange import Exchange

LARGE = 2**20  # weights of a layer; casting a smaller one costs nothing
BFLOAT16_MAX = torch.finfo(torch.bfloat16).max


def keep_low(model: nn.Module) -> None:
    """Give every large layer that is trained its weight in bfloat16 as `low`, where it has none yet.

    The layer then computes with `low` and its gradient is there, in bfloat16; `descend` updates both. It spares two
    casts of the whole layer a step, forward and backward. A convolution without bias has a normalisation that is
    multiplied into its weight; it has none. A linear layer notes in `bounds` how large an element of its gradient can
    be, which is known from what it is the product of.
    """
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)):
        large = layer.weight.requires_grad and layer.weight.numel() >= LARGE and layer.bias is not None
        if large and not hasattr(layer, "low"):
            layer.low = layer.weight.detach().bfloat16().requires_grad_()  # pyright: ignore[reportArgumentType]
            if isinstance(layer, nn.Linear):
                layer.bounds = []  # pyright: ignore[reportArgumentType]


def descend(
    model: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, *, clip: float, exchange: Exchange | None = None
) -> bool:
    """Update by what `optimiser` says and drop the gradients; where one or the loss is not finite, no weight changes.

    Equal to clamping, `torch.optim.SGD` with momentum and the cast of `low`, but memory is passed once.

    Args:
        clip: every element of a gradient is clamped to [-clip, clip]; 0: is not.
        exchange: with the other processes, of whose gradients the mean is taken; None: there is nothing to wait for.

    Returns:
        Whether all were finite.
    """
    layers: list[Any] = [module for module in model.modules() if hasattr(module, "low")]
    low: dict[Tensor, Tensor] = {layer.weight: layer.low for layer in layers}
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    found = {p: p.grad if p.grad is not None else low[p].grad if p in low else None for p in trained}
    gradients = {p: g for p, g in found.items() if g is not None}
    if exchange is None:
        bounded = {layer.weight for layer in layers if _is_bounded(layer)}
        finite = all_finite([loss.detach(), *(g for p, g in gradients.items() if p not in bounded)])
    else:
        finite = exchange(gradients, loss.detach())
    for group in optimiser.param_groups if finite else ():
        rule = Rule(group["lr"], group["momentum"], group["weight_decay"], clip)
        for p in group["params"]:
            if p in gradients:
                parts = exchange.places[p] if exchange else [gradients[p]]
                sgd_(p, parts, optimiser.state[p]["momentum_buffer"], low.get(p), rule)
    if exchange is not None:
        exchange.done()
    optimiser.zero_grad(set_to_none=True)
    for layer in layers:
        layer.low.grad = None
        getattr(layer, "bounds", []).clear()
    return finite


def _is_bounded(layer: Any) -> bool:
    """Whether the weight's gradient is known to be finite without looking at it."""
    bounds = getattr(layer, "bounds", [])
    return layer.weight.grad is None and bool(bounds) and bool(sum(bounds) < BFLOAT16_MAX)
