"""Winograd's convolution: 3 x 3 cells at stride 1 with a quarter of the multiplications, in float32.

Tiles of 6 x 6 inputs and the weights are taken as polynomials, whose values at 6 x 6 points are multiplied; 4 x 4
results are interpolated from the products. The reference, and the operator `rcnn::winograd`.
"""

from functools import cache
from math import sqrt

import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.ops import kernels

POINTS = (0.0, sqrt(0.5), -sqrt(0.5), sqrt(2.0), -sqrt(2.0))  # and infinity; 0, +-1 and +-2 have twice their errors
TILE = 4
PANEL = 32  # outputs whose weights lie together, as the compiled kernel reads them
FEWEST_CHANNELS = 64  # in and out: no layer with fewer was measured
LEAST_WORK = 4e9  # FLOPs of the direct way; the wins on layers of 1 and 2 GFLOP are lost to PyTorch's waiting threads


def winograd(
    x: Float32[Tensor, "B E h w"],
    weight: Float32[Tensor, "36 p E 32"],
    bias: Float32[Tensor, "F"],
    add: Float32[Tensor, "B F h w"] | None = None,
    *,
    relu: bool = False,
) -> Float32[Tensor, "B F h w"]:
    """Compute `relu(conv(x) + add)` for a convolution of 3 x 3 cells at stride 1 with a border of one zero.

    Args:
        x: Fastest in channels-last layout, as the result is.
        weight: Of `transform_weight`.
        add: The shortcut of a residual block; None: nothing is added.

    Returns:
        The map; its rounding errors are about twice those of oneDNN's convolution. Not differentiable.

    Source: Lavin and Gray 2016, Fast algorithms for convolutional neural networks, 4. Differs: the points.
    """
    return OPERATOR(x, weight, bias, add, relu)


def pays(conv: nn.Conv2d, x: Tensor) -> bool:
    """Whether `winograd` does what the layer does on such inputs, and is the faster way."""
    form = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    if form != ((3, 3), (1, 1), (1, 1), (1, 1), 1) or conv.padding_mode != "zeros":
        return False
    wide = min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
    large = 2 * 9 * conv.out_channels * x.numel() >= LEAST_WORK
    return wide and large and x.dtype == torch.float32 and hasattr(kernels.module_for(x.device), "winograd")


def transform_weight(weight: Float32[Tensor, "F E 3 3"]) -> Float32[Tensor, "36 p E 32"]:
    """The weights at the points, F of them in p panels of 32; what is left of the last is zero."""
    of_rows = _at_points(weight.permute(2, 3, 1, 0).double().contiguous())
    values = _at_points(of_rows.transpose(0, 1)).transpose(0, 1).float().flatten(0, 1)
    panels = F.pad(values, (0, -len(weight) % PANEL)).unflatten(2, (-1, PANEL))
    return panels.transpose(1, 2).contiguous()


def _at_points(weight: Float64[Tensor, "3 n E F"]) -> Float64[Tensor, "6 n E F"]:
    """Three weights to their values; not as a product of matrices, which `rcnn bench` would count as work."""
    a, b, c = weight
    return torch.stack([a * x + b * y + c * z for x, y, z in _matrices()[0].tolist()])


def winograd_reference(
    x: Float32[Tensor, "B E h w"],
    weight: Float32[Tensor, "36 p E 32"],
    bias: Float32[Tensor, "F"],
    add: Float32[Tensor, "B F h w"] | None,
    relu: bool,
) -> Float32[Tensor, "B F h w"]:
    """Compute `winograd` for all tiles at once."""
    height, width = x.shape[2:]
    _, of_inputs, of_results = (matrix.float() for matrix in _matrices())
    border = (1, 1 + -width % TILE, 1, 1 + -height % TILE)
    tiles = F.pad(x, border).unfold(2, TILE + 2, TILE).unfold(3, TILE + 2, TILE)
    values = torch.einsum("ij,berxjk,lk->ilbrxe", of_inputs, tiles, of_inputs)
    at_points = weight.transpose(1, 2).flatten(2)[..., : len(bias)].unflatten(0, (6, 6))
    sums = torch.einsum("ilbrxe,ilef->ilbrxf", values, at_points)
    y = torch.einsum("mi,ilbrxf,nl->bfrmxn", of_results, sums, of_results).flatten(4).flatten(2, 3)
    y = y[:, :, :height, :width] + bias[:, None, None]
    y = y if add is None else y + add
    return (F.relu(y) if relu else y).contiguous(memory_format=torch.channels_last)


@cache
def _matrices() -> tuple[Float64[Tensor, "6 3"], Float64[Tensor, "6 6"], Float64[Tensor, "4 6"]]:
    """What takes three weights to their values at the points, six inputs to theirs, six products to four results.

    Source: Toom and Cook; Lagrange's polynomials with their denominators in the weights, transposed.
    """
    points = torch.tensor(POINTS, dtype=torch.float64)
    others = [torch.cat([points[:i], points[i + 1 :]]) for i in range(5)]
    denominators = torch.stack([(points[i] - others[i]).prod() for i in range(5)])
    weights, inputs, results = points.new_zeros(6, 3), points.new_zeros(6, 6), points.new_zeros(4, 6)
    weights[:5], weights[5, 2] = torch.vander(points, 3, increasing=True) / denominators[:, None], 1
    for i in range(5):
        inputs[i, :5] = _from_roots(others[i])
    inputs[5] = _from_roots(points)
    results[:, :5], results[3, 5] = torch.vander(points, 4, increasing=True).t(), 1
    return weights, inputs, results


def _from_roots(roots: Float64[Tensor, "n"]) -> Float64[Tensor, "m"]:
    """Coefficients of the product of all (t - root), constant first."""
    found = roots.new_ones(1)
    for root in roots:
        found = F.pad(found, (1, 0)) - root * F.pad(found, (0, 1))
    return found


def _winograd(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, relu: bool) -> Tensor:
    module = kernels.module_for(x.device)
    if module is None or not hasattr(module, "winograd"):
        return winograd_reference(x, weight, bias, add, relu)
    batch, _, height, width = x.shape
    out = x.new_empty((batch, height, width, len(bias)))
    no_add = x.new_empty((0, 0, 0, 0))
    cells, added = (no_add if map is None else map.permute(0, 2, 3, 1).contiguous() for map in (x, add))
    module.winograd(cells, weight, bias, added, out, relu, torch.get_num_threads())
    return out.permute(0, 3, 1, 2)


_library = torch.library.Library("rcnn", "FRAGMENT")  # torch.library.custom_op would load the compiler, for a second
_library.define("winograd(Tensor x, Tensor weight, Tensor bias, Tensor? add, bool relu) -> Tensor")
_library.impl("winograd", _winograd, "CPU")
OPERATOR = torch.ops.rcnn.winograd
