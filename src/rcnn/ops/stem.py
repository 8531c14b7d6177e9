"""A network's first two convolutions of 3 x 3 cells and their pooling as one kernel, in bfloat16 on AMX's tiles.

The map between the two, the largest of the network, is computed where it is read and is never in memory. The compiled
kernel, its reference, and the operator `rcnn::stem`.
"""

from typing import Any

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import convolution, kernels

COLORS = 3  # values of a picture's cell


def stem(
    pictures: BFloat16[Tensor, "B 3 h w"],
    first: BFloat16[Tensor, "e 1 1 1024"],
    first_bias: Float32[Tensor, "E"],
    weight: BFloat16[Tensor, "f e 9 1024"],
    bias: Float32[Tensor, "F"],
) -> BFloat16[Tensor, "B F y x"]:
    """`max_pool2d(relu(conv2d(relu(conv2d(pictures, ...)), ...)), 2, 2)`, padded by one. Not differentiable.

    Args:
        pictures: finite; fastest in channels-last layout, as the result is.
        first: of `pack_first`.
        weight: of `convolution.pack`.

    Returns:
        Sums are float32; the map between is rounded once, and so is the result.
    """
    return OPERATOR(pictures, first, first_bias, weight, bias)


def pays(pictures: Tensor, first: Tensor, weight: Tensor, sizes: Any, other_sizes: Any) -> bool:
    """Whether `stem` computes two such convolutions, and is the faster way.

    Args:
        first, weight: (E, 3, 3, 3) and (F, E, 3, 3).
        sizes, other_sizes: stride, padding, dilation and groups of the two.
    """
    if pictures.shape[1] != COLORS or first.shape[1] != COLORS or not _is_compiled(pictures):
        return False
    between = pictures.new_empty(()).expand(len(pictures), len(first), *pictures.shape[2:])  # takes no memory
    alike = first.shape[2:] == weight.shape[2:] and sizes == other_sizes
    return alike and convolution.pays(weight, between, sizes, more=True)


def _is_compiled(x: Tensor) -> bool:
    module = kernels.module_for(x.device)
    return module is not None and hasattr(module, "stem") and module.has_amx()


def pack_first(weight: BFloat16[Tensor, "E 3 3 3"]) -> BFloat16[Tensor, "e 1 1 1024"]:
    """The weights as the kernel reads them: 16 pairs of the 27 values and zeros, by 16 outputs, twice."""
    values = F.pad(weight.permute(0, 2, 3, 1).flatten(1), (0, convolution.UNIT - 9 * COLORS))
    tiles = values.unflatten(0, (-1, 2, 16)).unflatten(3, (16, 2))
    return tiles.permute(0, 1, 3, 2, 4).flatten(1)[:, None, None].contiguous()


def stem_reference(
    pictures: BFloat16[Tensor, "B 3 h w"],
    first: BFloat16[Tensor, "e 1 1 1024"],
    first_bias: Float32[Tensor, "E"],
    weight: BFloat16[Tensor, "f e 9 1024"],
    bias: Float32[Tensor, "F"],
) -> BFloat16[Tensor, "B F y x"]:
    """Compute `stem` as two convolutions in float32."""
    tiles = first.view(-1, 2, 16, 16, 2).permute(0, 1, 3, 2, 4).flatten(0, 2).flatten(1)
    cells = tiles[:, : 9 * COLORS].unflatten(1, (3, 3, COLORS))
    between = F.conv2d(pictures.float(), cells.permute(0, 3, 1, 2).float(), first_bias, padding=1).relu().bfloat16()
    return convolution.convolution_reference(between, weight, bias, None, True, True)


def _stem(pictures: Tensor, first: Tensor, first_bias: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if not _is_compiled(pictures):
        return stem_reference(pictures, first, first_bias, weight, bias)
    (images, _, height, width), outputs = pictures.shape, len(bias)
    out = pictures.new_empty(images, height // 2, width // 2, outputs)
    stored, module = pictures.permute(0, 2, 3, 1).contiguous(), kernels.module_for(pictures.device)
    assert module is not None
    module.stem(stored, first, first_bias, weight, bias, out, torch.get_num_threads())
    return out.permute(0, 3, 1, 2)


_library = torch.library.Library("rcnn", "FRAGMENT")  # torch.library.custom_op would load the compiler, for a second
_library.define("stem(Tensor pictures, Tensor first, Tensor first_bias, Tensor weight, Tensor bias) -> Tensor")
_library.impl("stem", _stem, "CPU")
OPERATOR = torch.ops.rcnn.stem
