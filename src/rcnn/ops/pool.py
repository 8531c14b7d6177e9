"""Max pooling: PyTorch's, and the same by the compiled kernels, which keep a byte where PyTorch keeps a position."""

from functools import reduce
from typing import Any

import torch
from jaxtyping import Real, UInt8
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import handle_torch_function, has_torch_function_unary

from rcnn.ops import kernels

KERNEL_DTYPES = (torch.float32, torch.bfloat16)
WIDEST = 15  # windows of which a byte can name every place


def max_pool(x: Real[Tensor, "B F H W"], window: int, *, stride: int, padding: int = 0) -> Real[Tensor, "B F h w"]:
    """The largest value of each window, differentiably, as torch.nn.functional.max_pool2d.

    The first of equal values counts, a NaN is larger than all, rows and columns that fill no window are left out.

    Args:
        window, stride, padding: cells, of both axes; padding is at most half a window.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(max_pool, (x,), x, window, stride=stride, padding=padding)
    if x.dtype == torch.uint8:
        return _of_bytes(x, window, stride, padding)
    if torch.compiler.is_compiling() or not _has_kernel(x, window, padding):
        return F.max_pool2d(x, window, stride, padding)
    return _MaxPool.apply(x, window, stride, padding)


def _has_kernel(x: Tensor, window: int, padding: int) -> bool:
    stored = x.dtype in KERNEL_DTYPES and x.is_contiguous(memory_format=torch.channels_last)
    fits = window <= WIDEST and 2 * padding <= window <= min(x.shape[-2:]) + 2 * padding
    return stored and fits and hasattr(kernels.module_for(x.device), "max_pool")


def _of_bytes(x: UInt8[Tensor, "B F H W"], window: int, stride: int, padding: int) -> UInt8[Tensor, "B F h w"]:
    """By rows, then by columns: PyTorch's refuses maps of bytes with more than 255 values."""
    x = F.pad(x, (padding,) * 4) if padding else x  # no byte is smaller than zero
    for axis in (2, 3):
        last = (x.shape[axis] - window) // stride * stride + 1
        shifted = (x.narrow(axis, i, last) for i in range(window))
        x = reduce(torch.maximum, (y[:, :, ::stride] if axis == 2 else y[..., ::stride] for y in shifted))
    return x


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, window: int, stride: int, padding: int) -> Tensor:
        height, width = ((side + 2 * padding - window) // stride + 1 for side in x.shape[-2:])
        out = x.new_empty((len(x), height, width, x.shape[1]))
        where = (
            torch.empty_like(out, dtype=torch.uint8) if ctx.needs_input_grad[0] else out.new_empty(0, dtype=torch.uint8)
        )
        ctx.sizes, ctx.shape = (window, stride, padding), x.shape
        module = kernels.module_for(x.device)
        assert module is not None
        module.max_pool(x.detach().permute(0, 2, 3, 1), out, where, *ctx.sizes, torch.get_num_threads())
        ctx.save_for_backward(where)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (where,), (images, channels, height, width) = ctx.saved_tensors, ctx.shape
        grad = grad.detach().permute(0, 2, 3, 1).contiguous()
        of_x = grad.new_empty((images, height, width, channels))
        module = kernels.module_for(grad.device)
        assert module is not None
        module.max_pool_backward(grad, where, of_x, *ctx.sizes, torch.get_num_threads())
        return of_x.permute(0, 3, 1, 2), None, None, None
