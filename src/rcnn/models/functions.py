"""What layers do in training as one kernel each, differentiably: convolution, linear layer, normalisation."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import convolution, large_linear, weight_gradient


class Linear(torch.autograd.Function):
    """A linear layer whose products are our own kernels where they are faster.

    `factors`, if any, receives what the weight's gradient is the product of, and autograd none (`training.descent`).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, factors: list[Any] | None) -> Tensor:
        """x (n, E), weight (F, E) and bias (F): (n, F)."""
        ctx.save_for_backward(x, weight)
        ctx.factors = factors
        return large_linear.large_linear(x, weight, bias) if _has_tiles(x, weight) else F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias."""
        x, weight = ctx.saved_tensors
        of_x = grad @ weight if ctx.needs_input_grad[0] else None
        if ctx.factors is None:
            return of_x, weight_of_linear(grad, x, weight), grad.sum(0), None
        ctx.factors.append((grad, x))
        return of_x, None, grad.sum(0), None


def weight_of_linear(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of a linear layer's weight (F, E), from that of its results (n, F) and what it saw (n, E).

    By oneDNN it is a product of two matrices in order: twice as fast as one transposed.
    """
    return large_linear.large_linear_weight(grad, x) if _has_tiles(x, weight) else grad.t().contiguous() @ x


def _has_tiles(x: Tensor, weight: Tensor) -> bool:
    return not torch.compiler.is_compiling() and large_linear.pays(x, weight)


class Convolution(torch.autograd.Function):
    """`relu(conv(x) + add)` or without ReLU, by our own kernels where they are faster; of ReLU it keeps the result."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, sizes: Any, relu: bool
    ) -> Tensor:
        """Of maps (B, E, H, W); sizes are stride, padding, dilation and groups."""
        ctx.sizes, ctx.relu = sizes, relu
        if convolution.pays(weight, x, sizes):
            y = on_tiles(x, convolution.pack(weight), bias.float(), add, sizes, relu=relu)
        else:
            y = by_onednn(x, weight, bias, add, sizes, relu=relu)
        ctx.save_for_backward(x, weight, y if relu else None)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight, bias and what was added."""
        x, weight, y = ctx.saved_tensors
        needed = list(ctx.needs_input_grad[:3])
        found: list[Tensor | None] = [None, None, None]
        if needed[0] and convolution.pays(weight, x, ctx.sizes, more=ctx.relu):
            found[0], grad = convolution.gradient(grad, weight, y)
        elif ctx.relu:
            grad = torch.ops.aten.threshold_backward(grad, y, 0)
        if any(needed[1:]) and weight_gradient.pays(weight, x, ctx.sizes):
            found[1:] = weight_gradient.weight_gradient(grad, x)
        left = [wanted and of is None for wanted, of in zip(needed, found, strict=True)]
        others = _backward(grad, x, weight, ctx.sizes, left) if any(left) else found
        of_inputs = [other if of is None else of for of, other in zip(found, others, strict=True)]
        return *of_inputs, grad if ctx.needs_input_grad[3] else None, None, None


class ConvolutionAndPool(torch.autograd.Function):
    """`max_pool(relu(conv(x)), 2, stride=2)` by one kernel of our own: of the map between nothing is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, sizes: Any) -> Tensor:
        """Of maps (B, E, H, W), where `convolution.pays`."""
        ctx.sizes = sizes
        y, chosen = convolution.convolution_and_pool(x, convolution.pack(weight), bias.float())
        ctx.save_for_backward(x, weight, y, chosen)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x, weight and bias."""
        x, weight, y, chosen = ctx.saved_tensors
        of_x, grad = convolution.gradient_of_pooled(grad, weight, y, chosen, tuple(x.shape[2:]))
        if weight_gradient.pays(weight, x, ctx.sizes):
            return of_x, *weight_gradient.weight_gradient(grad, x), None
        return of_x, *_backward(grad, x, weight, ctx.sizes, [False, True, True])[1:], None


def _backward(grad: Tensor, x: Tensor, weight: Tensor, sizes: Any, needed: list[bool]) -> list[Tensor | None]:
    """The gradients of a convolution by oneDNN."""
    stride, padding, dilation, groups = sizes
    if weight.shape[2:] == (1, 1) and tuple(padding) == (0, 0):
        return _backward_of_points(grad, x, weight, needed)
    form = (stride, padding, dilation, False, [0, 0], groups)
    return list(torch.ops.aten.convolution_backward(grad, x, weight, [len(weight)], *form, needed))


def _backward_of_points(
    grad: Float[Tensor, "B D h w"], x: Float[Tensor, "B E h w"], weight: Float[Tensor, "D E 1 1"], needed: list[bool]
) -> list[Tensor | None]:
    """The gradients of a convolution of 1 x 1 as products, half of the time that oneDNN takes for them."""
    points, values = (y.permute(0, 2, 3, 1).flatten(0, 2) for y in (grad, x))
    matrix = weight.flatten(1)
    of_x = (points @ matrix).unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2) if needed[0] else None
    of_weight = (points.t() @ values).view_as(weight) if needed[1] else None
    return [of_x, of_weight, points.sum(0) if needed[2] else None]


class NormReLU(torch.autograd.Function):
    """`relu(x * scale + shift)` by channel, differentiable by x; it keeps one map, the result."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Of maps (B, F, h, w), scale and shift (F)."""
        y = per_channel(x, scale, shift, "relu")
        ctx.save_for_backward(scale, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of x only."""
        scale, y = ctx.saved_tensors
        grad = torch.ops.aten.threshold_backward(grad, y, 0)
        return per_channel(grad, scale, torch.zeros_like(scale), "none"), None, None


def per_channel(x: Tensor, scale: Tensor, shift: Tensor, then: str) -> Tensor:
    """Scale and shift as a 1x1 convolution of every channel by itself, which oneDNN does at the speed of memory."""
    weight = scale[:, None, None, None]
    return torch.ops.mkldnn._convolution_pointwise(x, weight, shift, (0, 0), (1, 1), (1, 1), len(scale), then, [], "")


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, sizes: Any, *, relu: bool) -> Tensor:
    """`relu(conv(x) + add)` as one kernel of oneDNN; the weight may be one that it has packed."""
    (stride, padding, dilation, groups), run = sizes, torch.ops.mkldnn._convolution_pointwise
    settings = (padding, stride, dilation, groups)
    if add is None:
        return run(x, weight, bias, *settings, "relu" if relu else "none", [], "")
    return run.binary(x, add, weight, bias, *settings, "add", None, "relu" if relu else None, [], None)


def on_tiles(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, sizes: Any, *, relu: bool) -> Tensor:
    """The same as one kernel of our own, by a weight of `ops.convolution.pack`."""
    return convolution.convolution(x, weight, bias, add=add, relu=relu)
