"""One step of SGD on a CPU, each weight in one pass, and the bfloat16 copies of large weights that it keeps."""

from typing import Any

import torch
from torch import Tensor, nn

from rcnn.models.functions import weight_of_linear
from rcnn.ops import large_linear
from rcnn.ops.update import Rule, all_finite, sgd_
from rcnn.training.exchange import Exchange

LARGE = 2**20  # weights of a layer; casting a smaller one costs nothing
BFLOAT16_MAX = torch.finfo(torch.bfloat16).max


def keep_low(model: nn.Module, *, factors: bool = True) -> None:
    """Give every large layer that is trained its weight in bfloat16 as `low`, where it has none yet.

    The layer then computes with `low` and its gradient is there, in bfloat16; `descend` updates both. It spares two
    casts of the whole layer a step, forward and backward. A convolution without bias has a normalisation that is
    multiplied into its weight; it has none.

    Args:
        factors: a linear layer notes there what its gradient is the product of, and `descend` multiplies: on AMX's
            tiles as it updates, so that the gradient, as large as the weight, is never in memory. False: it does not.
    """
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv2d)):
        large = layer.weight.requires_grad and layer.weight.numel() >= LARGE and layer.bias is not None
        if large and not hasattr(layer, "low"):
            layer.low = layer.weight.detach().bfloat16().requires_grad_()  # pyright: ignore[reportArgumentType]
            if factors and isinstance(layer, nn.Linear):
                layer.factors = []  # pyright: ignore[reportArgumentType]


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
    products = {layer.weight: _joined(layer.factors) for layer in layers if getattr(layer, "factors", None)}
    bounded = {p for p, factors in products.items() if p.grad is None and _is_bounded(*factors)}
    for p, (grad, x) in products.items():
        if p not in bounded or not large_linear.pays(x, low[p]):
            low[p].grad = weight_of_linear(grad, x, low[p])
    found = {p: p.grad if p.grad is not None else low[p].grad if p in low else None for p in trained}
    gradients = {p: g for p, g in found.items() if g is not None}
    if exchange is None:
        finite = all_finite([loss.detach(), *(g for p, g in gradients.items() if p not in bounded)])
    else:
        finite = exchange(gradients, loss.detach())
    for group in optimiser.param_groups if finite else ():
        rule = Rule(group["lr"], group["momentum"], group["weight_decay"], clip)
        for p in group["params"]:
            buffer = optimiser.state[p]["momentum_buffer"]
            if p in gradients:
                parts = exchange.places[p] if exchange else [gradients[p]]
                sgd_(p, parts, buffer, low.get(p), rule)
            elif p in products:
                large_linear.large_linear_update_(p, *products[p], buffer, low[p], rule)
    if exchange is not None:
        exchange.done()
    optimiser.zero_grad(set_to_none=True)
    for layer in layers:
        layer.low.grad = None
        getattr(layer, "factors", []).clear()
    return finite


def _joined(factors: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The two factors of a gradient that is the sum of several products."""
    if len(factors) == 1:
        return factors[0]
    grads, inputs = zip(*factors, strict=True)
    return torch.cat(grads), torch.cat(inputs)


def _is_bounded(grad: Tensor, x: Tensor) -> bool:
    """Whether the product is known to be finite without looking at it."""
    return bool(len(x) * _largest(grad) * _largest(x) < BFLOAT16_MAX)


def _largest(x: Tensor) -> Tensor:
    """The largest absolute value."""
    return torch.stack(x.aminmax()).float().abs().amax()
