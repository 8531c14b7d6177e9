"""One step of SGD on a CPU, each weight in one pass, and the bfloat16 copies of large weights that it keeps."""

import torch
from torch import Tensor, nn

from rcnn.ops.update import Rule, all_finite, sgd_
from rcnn.training.exchange import Exchange

LARGE = 2**20  # weights of a layer; casting a smaller one costs nothing


def keep_low(model: nn.Module) -> None:
    """Give every large linear layer that is trained its weight in bfloat16 as `low`, where it has none yet.

    The layer then computes with `low` and its gradient is there, in bfloat16; `descend` updates both. It spares two
    casts of the whole layer a step, forward and backward.
    """
    for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
        if layer.weight.requires_grad and layer.weight.numel() >= LARGE and not hasattr(layer, "low"):
            layer.low = layer.weight.detach().bfloat16().requires_grad_()  # pyright: ignore[reportArgumentType]


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
    low: dict[Tensor, Tensor] = {m.weight: m.low for m in model.modules() if hasattr(m, "low")}  # pyright: ignore
    trained = [p for group in optimiser.param_groups for p in group["params"]]
    found = {p: p.grad if p.grad is not None else low[p].grad if p in low else None for p in trained}
    gradients = {p: g for p, g in found.items() if g is not None}
    if exchange is None:
        finite = all_finite([loss.detach(), *gradients.values()])
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
    for copy in low.values():
        copy.grad = None
    return finite
