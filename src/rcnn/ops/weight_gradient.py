"""The gradients of the weight and the bias of a convolution of 3 x 3 cells in bfloat16, on processors with AMX.

The compiled kernel, its reference, and the operator `rcnn::weight_gradient`.
"""

from typing import Any

import torch
from jaxtyping import BFloat16
from torch import Tensor

from rcnn.ops import kernels

UNIT = 32  # channels of two tiles: what the compiled kernel computes at a time
FEWEST_CHANNELS = 128  # in and out: with 64 its preparations cost what its products gain
LEAST_WORK = 5e8  # FLOPs: where smaller layers gain too, it is little


def weight_gradient(
    grad: BFloat16[Tensor, "B F h w"], x: BFloat16[Tensor, "B E h w"]
) -> tuple[BFloat16[Tensor, "F E 3 3"], BFloat16[Tensor, "F"]]:
    """Compute the gradients of the weight and of the bias of `conv2d(x, weight, bias, padding=1)`.

    Args:
        grad: Of the map; fastest in channels-last layout, as x is and as the weight's gradient will be.

    Returns:
        Sums in float32, rounded once. Their bits do not depend on the number of threads.
    """
    return OPERATOR(grad, x)


def pays(weight: Tensor, x: Tensor, sizes: Any) -> bool:
    """Whether `weight_gradient` is of such a convolution and the faster way.

    Args:
        sizes: stride, padding, dilation and groups of the convolution.
    """
    *pairs, groups = sizes
    form = (tuple(weight.shape[2:]), *(tuple(pair) for pair in pairs), groups)
    if form != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or weight.dtype != x.dtype:
        return False
    wide = min(weight.shape[:2]) >= FEWEST_CHANNELS
    large = 2 * 9 * len(weight) * x.numel() >= LEAST_WORK
    return wide and large and _serves(x, len(weight))


def _serves(x: Tensor, outputs: int) -> bool:
    """Whether the compiled kernel does."""
    if x.dtype != torch.bfloat16 or x.shape[1] % UNIT or outputs % UNIT or not x.numel() or not outputs:
        return False
    module = kernels.module_for(x.device)
    return module is not None and hasattr(module, "weight_gradient") and module.has_amx()


def weight_gradient_reference(
    grad: BFloat16[Tensor, "B F h w"], x: BFloat16[Tensor, "B E h w"]
) -> tuple[BFloat16[Tensor, "F E 3 3"], BFloat16[Tensor, "F"]]:
    """Compute `weight_gradient` as a product for each cell of the weight."""
    height, width = x.shape[2:]
    seen, grad = torch.nn.functional.pad(x.float(), (1, 1, 1, 1)), grad.float()
    cells = [
        torch.einsum("bfyx,beyx->fe", grad, seen[:, :, top : top + height, left : left + width])
        for top in range(3)
        for left in range(3)
    ]
    of_weight = torch.stack(cells, 2).unflatten(2, (3, 3)).bfloat16()
    return of_weight.contiguous(memory_format=torch.channels_last), grad.sum((0, 2, 3)).bfloat16()


def _weight_gradient(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    module, outputs, channels = kernels.module_for(x.device), grad.shape[1], x.shape[1]
    if module is None or not _serves(x, outputs):
        return weight_gradient_reference(grad, x)
    of_weight, of_bias = x.new_empty((outputs, 3, 3, channels)), x.new_empty((outputs, 1, 1, 1))
    maps, inputs = (y.permute(0, 2, 3, 1).contiguous() for y in (grad, x))
    module.weight_gradient(maps, inputs, of_weight, of_bias, torch.get_num_threads())
    return of_weight.permute(0, 3, 1, 2), of_bias.flatten()


_library = torch.library.Library("rcnn", "FRAGMENT")  # torch.library.custom_op would load the compiler, for a second
_library.define("weight_gradient(Tensor grad, Tensor x) -> (Tensor, Tensor)")
_library.impl("weight_gradient", _weight_gradient, "CPU")
OPERATOR = torch.ops.rcnn.weight_gradient
