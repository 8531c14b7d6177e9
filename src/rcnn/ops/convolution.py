"""A convolution of 3 x 3 cells in bfloat16 on the matrix tiles of AMX, and the gradient of what it sees.

The compiled kernel, its reference, and the operator `rcnn::convolution`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import BFloat16, Float32, UInt8
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import kernels

UNIT = 32  # channels of two tiles: what the compiled kernel computes at a time
WIDE = 256 * 256  # channels in and out; of fewer, what it prepares costs what its products gain,
WIDE_AND_MORE = 128 * 128  # but less where it spares a pass over the map
LEAST_WORK = 5e8  # FLOPs: where smaller layers gain too, it is little
MUCH_WORK = 8e9  # of as much, maps are larger than caches, and narrow layers gain too


def convolution(
    x: BFloat16[Tensor, "B E h w"],
    weight: BFloat16[Tensor, "f e 9 1024"],
    bias: Float32[Tensor, "F"] | None = None,
    *,
    add: BFloat16[Tensor, "B F h w"] | None = None,
    relu: bool = False,
    pool: bool = False,
) -> BFloat16[Tensor, "B F y x"]:
    """`relu(conv2d(x, weight, bias, padding=1) + add)`, summed in float32 and rounded once. Not differentiable.

    Args:
        x: fastest in channels-last layout, as the result is.
        weight: of `pack`; AMX multiplies pairs (Intel, Architecture Instruction Set Extensions, 3.4).
        pool: followed by `max_pool2d(..., 2, 2)`; then nothing is added.

    Returns:
        Bits do not depend on the number of threads, nor on what else is in the batch.
    """
    return OPERATOR(x, weight, bias, add, relu, pool)


def gradient(
    grad: BFloat16[Tensor, "B F h w"],
    weight: BFloat16[Tensor, "F E 3 3"],
    positive: BFloat16[Tensor, "B F h w"] | None = None,
) -> tuple[BFloat16[Tensor, "B E h w"], BFloat16[Tensor, "B F h w"]]:
    """Compute the gradient of the x of `relu(conv2d(x, weight, padding=1))`: a convolution too.

    Args:
        grad: of the ReLU.
        positive: the ReLU's result; None: there is none.

    Returns:
        The gradients of x and of the convolution's own result: where the ReLU's is not above zero, that is zero.
    """
    packed = pack(weight, transposed=True)
    return (convolution(grad, packed), grad) if positive is None else GRADIENT(grad, packed, positive)


def convolution_and_pool(
    x: BFloat16[Tensor, "B E h w"], weight: BFloat16[Tensor, "f e 9 1024"], bias: Float32[Tensor, "F"]
) -> tuple[BFloat16[Tensor, "B F y x"], UInt8[Tensor, "B F y x"]]:
    """`convolution` with ReLU, pooled, and which of the 2 x 2 cells is the first of the largest: 0 to 3, row by row."""
    return POOLED(x, weight, bias)


def gradient_of_pooled(
    grad: BFloat16[Tensor, "B F y x"],
    weight: BFloat16[Tensor, "F E 3 3"],
    positive: BFloat16[Tensor, "B F y x"],
    chosen: UInt8[Tensor, "B F y x"],
    size: tuple[int, int],
) -> tuple[BFloat16[Tensor, "B E h w"], BFloat16[Tensor, "B F h w"]]:
    """`gradient` of what `convolution_and_pool` returned: positive and chosen; size is (h, w) of its x."""
    return GRADIENT_OF_POOLED(grad, pack(weight, transposed=True), positive, chosen, size)


def pays(weight: Tensor, x: Tensor, sizes: Any, *, more: bool = False) -> bool:
    """Whether `convolution` computes such a one and is the faster way.

    Args:
        sizes: stride, padding, dilation and groups of the convolution.
        more: it is to be pooled, or it is the gradient of a ReLU too.
    """
    *pairs, groups = sizes
    form = (tuple(weight.shape[2:]), *(tuple(pair) for pair in pairs), groups)
    if form != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or x.dtype != torch.bfloat16:
        return False
    work, weights = 2 * 9 * len(weight) * x.numel(), len(weight) * x.shape[1]
    large = work >= LEAST_WORK and (weights >= (WIDE_AND_MORE if more else WIDE) or work >= MUCH_WORK)
    return large and not any(side % UNIT for side in weight.shape[:2]) and _module(x) is not None


def _module(x: Tensor) -> Any:
    module = kernels.module_for(x.device)
    return module if module is not None and hasattr(module, "convolution") and module.has_amx() else None


def pack(weight: BFloat16[Tensor, "F E 3 3"], *, transposed: bool = False) -> BFloat16[Tensor, "f e 9 1024"]:
    """The weights in the order in which the kernel reads them: of each cell, 16 pairs of channels by 16 outputs, twice.

    Args:
        transposed: of the convolution that is the gradient of the inputs: channels are outputs, cells go backwards.
    """
    stored, module = weight.permute(0, 2, 3, 1).contiguous(), _module(weight)
    if module is None:
        return _pack(weight.transpose(0, 1).flip(2, 3) if transposed else weight)
    outputs, channels = weight.shape[:2][:: -1 if transposed else 1]
    packed = weight.new_empty(outputs // UNIT, channels // UNIT, 9, UNIT * UNIT)
    module.pack_convolution(stored, packed, transposed, torch.get_num_threads())
    return packed


def _pack(weight: BFloat16[Tensor, "F E 3 3"]) -> BFloat16[Tensor, "f e 9 1024"]:
    tiles = weight.flatten(2).unflatten(0, (-1, 2, UNIT // 2)).unflatten(3, (-1, UNIT // 2, 2))
    return tiles.permute(0, 3, 6, 1, 4, 2, 5).flatten(3).contiguous()


def convolution_reference(
    x: BFloat16[Tensor, "B E h w"],
    weight: BFloat16[Tensor, "f e 9 1024"],
    bias: Float32[Tensor, "F"] | None,
    add: BFloat16[Tensor, "B F h w"] | None,
    relu: bool,
    pool: bool,
) -> BFloat16[Tensor, "B F y x"]:
    """Compute `convolution` in float32 from the weights put back in order."""
    tiles = weight.unflatten(3, (2, UNIT // 2, UNIT // 2, 2))
    ordered = tiles.permute(0, 3, 5, 1, 4, 6, 2).flatten(3, 5).flatten(0, 2).unflatten(2, (3, 3))
    y = F.conv2d(x.float().contiguous(), ordered.float(), bias, padding=1)
    y = y if add is None else y + add
    y = F.max_pool2d(y, 2, 2) if pool else y
    y = (F.relu(y) if relu else y).bfloat16()
    return y.contiguous(memory_format=torch.channels_last)


def gradient_reference(
    grad: BFloat16[Tensor, "B F h w"],
    weight: BFloat16[Tensor, "e f 9 1024"],
    positive: BFloat16[Tensor, "B F h w"],
) -> tuple[BFloat16[Tensor, "B E h w"], BFloat16[Tensor, "B F h w"]]:
    """Compute `gradient` by weights that are packed."""
    masked = torch.where(positive > 0, grad, 0)
    of_x = convolution_reference(masked, weight, None, None, False, False)
    return of_x, masked.contiguous(memory_format=torch.channels_last)


def convolution_and_pool_reference(
    x: BFloat16[Tensor, "B E h w"], weight: BFloat16[Tensor, "f e 9 1024"], bias: Float32[Tensor, "F"]
) -> tuple[BFloat16[Tensor, "B F y x"], UInt8[Tensor, "B F y x"]]:
    """Compute `convolution_and_pool` one after the other."""
    y = convolution_reference(x, weight, bias, None, True, False)
    largest, index = F.max_pool2d(y.float(), 2, 2, return_indices=True)
    row, column = index // y.shape[3] % 2, index % y.shape[3] % 2
    return largest.bfloat16(), (2 * row + column).to(torch.uint8)


def gradient_of_pooled_reference(
    grad: BFloat16[Tensor, "B F y x"],
    weight: BFloat16[Tensor, "e f 9 1024"],
    positive: BFloat16[Tensor, "B F y x"],
    chosen: UInt8[Tensor, "B F y x"],
    size: Sequence[int],
) -> tuple[BFloat16[Tensor, "B E h w"], BFloat16[Tensor, "B F h w"]]:
    """Compute `gradient_of_pooled` by weights that are packed."""
    spread = grad.new_zeros(*grad.shape[:2], *size).to(memory_format=torch.channels_last)
    rows, columns = grad.shape[2:]
    for i in range(4):
        cells = spread[:, :, i // 2 :: 2, i % 2 :: 2][:, :, :rows, :columns]
        cells.copy_(torch.where((chosen == i) & (positive > 0), grad, 0))
    return convolution_reference(spread, weight, None, None, False, False), spread


def _convolution(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, relu: bool, pool: bool) -> Tensor:
    module = _module(x)
    if module is None:
        return convolution_reference(x, weight, bias, add, relu, pool)
    (images, _, *sides), outputs = x.shape, UNIT * len(weight)
    out = x.new_empty(images, *(side // 2 if pool else side for side in sides), outputs)
    none = x.new_empty(0, 1, 1, 1)
    bias = x.new_empty(0, dtype=torch.float32) if bias is None else bias
    added = none if add is None else _stored(add)
    unused = x.new_empty(0, 1, 1, 1, dtype=torch.uint8)
    module.convolution(_stored(x), none, none, weight, bias, added, out, unused, relu, pool, torch.get_num_threads())
    return out.permute(0, 3, 1, 2)


def _gradient(grad: Tensor, weight: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    module = _module(grad)
    if module is None:
        return gradient_reference(grad, weight, positive)
    seen, signs = _stored(grad), _stored(positive)
    out, masked = seen.new_empty(*seen.shape[:3], UNIT * len(weight)), torch.empty_like(signs)
    none, bias = seen.new_empty(0, 1, 1, 1), seen.new_empty(0, dtype=torch.float32)
    unused = seen.new_empty(0, 1, 1, 1, dtype=torch.uint8)
    module.convolution(seen, signs, masked, weight, bias, none, out, unused, False, False, torch.get_num_threads())
    return out.permute(0, 3, 1, 2), masked.permute(0, 3, 1, 2)


def _pooled(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    module = _module(x)
    if module is None:
        return convolution_and_pool_reference(x, weight, bias)
    (images, _, height, width), none = x.shape, x.new_empty(0, 1, 1, 1)
    out = x.new_empty(images, height // 2, width // 2, UNIT * len(weight))
    chosen = torch.empty_like(out, dtype=torch.uint8)
    module.convolution(_stored(x), none, none, weight, bias, none, out, chosen, True, True, torch.get_num_threads())
    return out.permute(0, 3, 1, 2), chosen.permute(0, 3, 1, 2)


def _gradient_of_pooled(
    grad: Tensor, weight: Tensor, positive: Tensor, chosen: Tensor, size: Sequence[int]
) -> tuple[Tensor, Tensor]:
    module = _module(grad)
    if module is None:
        return gradient_of_pooled_reference(grad, weight, positive, chosen, size)
    seen, signs, where = (_stored(y) for y in (grad, positive, chosen))
    out, spread = (seen.new_empty(len(seen), *size, channels) for channels in (UNIT * len(weight), grad.shape[1]))
    none, bias = seen.new_empty(0, 1, 1, 1), seen.new_empty(0, dtype=torch.float32)
    module.convolution(seen, signs, spread, weight, bias, none, out, where, False, False, torch.get_num_threads())
    return out.permute(0, 3, 1, 2), spread.permute(0, 3, 1, 2)


def _stored(x: Tensor) -> Tensor:
    """The map as the kernel reads it, (B, h, w, F)."""
    return x.detach().permute(0, 2, 3, 1).contiguous()


_library = torch.library.Library("rcnn", "FRAGMENT")  # torch.library.custom_op would load the compiler, for a second
_library.define("convolution(Tensor x, Tensor weight, Tensor? bias, Tensor? add, bool relu, bool pool) -> Tensor")
_library.define("convolution_gradient(Tensor grad, Tensor weight, Tensor positive) -> (Tensor, Tensor)")
_library.define("convolution_and_pool(Tensor x, Tensor weight, Tensor bias) -> (Tensor, Tensor)")
_library.define(
    "convolution_gradient_of_pooled(Tensor grad, Tensor weight, Tensor positive, Tensor chosen, int[] size)"
    " -> (Tensor, Tensor)"
)
_library.impl("convolution_and_pool", _pooled, "CPU")
_library.impl("convolution_gradient_of_pooled", _gradient_of_pooled, "CPU")
_library.impl("convolution", _convolution, "CPU")
_library.impl("convolution_gradient", _gradient, "CPU")
OPERATOR = torch.ops.rcnn.convolution
GRADIENT = torch.ops.rcnn.convolution_gradient
POOLED = torch.ops.rcnn.convolution_and_pool
GRADIENT_OF_POOLED = torch.ops.rcnn.convolution_gradient_of_pooled
