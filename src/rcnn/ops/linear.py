"""A linear layer in bfloat16 on the matrix tiles of AMX: the reference, and the operator `rcnn::linear`."""

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.ops import kernels

STEP = 32  # inputs of one product of tiles
PANEL = 32  # outputs whose weights lie together, as the compiled kernel reads them
FEWEST_ROWS = 64  # of less, oneDNN is as fast: the weights take their time to come
LEAST_WEIGHTS = 20_000_000  # of less, oneDNN is as fast: they stay near the processor


def linear(
    x: BFloat16[Tensor, "n E"],
    weight: BFloat16[Tensor, "p s 1024"],
    bias: Float32[Tensor, "F"],
    *,
    relu: bool = False,
) -> BFloat16[Tensor, "n F"]:
    """`relu(x @ weight.t() + bias)`, summed in float32 and rounded once. Not differentiable.

    Args:
        x: E in whole steps of 32; such is the unit of AMX (Intel, Architecture Instruction Set Extensions, 3.4).
        weight: of `pack_weight`.
    """
    return OPERATOR(x, weight, bias, relu)


def pays(layer: nn.Linear, x: Tensor) -> bool:
    """Whether `linear` does what the layer does on such inputs, and is the faster way."""
    module = kernels.module_for(x.device)
    fits = x.dtype == torch.bfloat16 and layer.in_features % STEP == 0
    large = len(x) >= FEWEST_ROWS and layer.weight.numel() >= LEAST_WEIGHTS
    return fits and large and module is not None and hasattr(module, "linear") and module.has_amx()


def pack_weight(weight: BFloat16[Tensor, "F E"]) -> BFloat16[Tensor, "p s 1024"]:
    """The weights in p panels of 32 outputs and s steps of 32 inputs; what is left of the last panel is zero.

    One step of a panel is two tiles, each of 16 pairs of inputs and 16 outputs.
    """
    rest = -len(weight) % PANEL
    padded = F.pad(weight, (0, 0, 0, rest)) if rest else weight
    outputs_inputs = padded.unflatten(0, (-1, 2, PANEL // 2)).unflatten(3, (-1, STEP // 2, 2))
    return outputs_inputs.permute(0, 3, 1, 4, 2, 5).flatten(2).contiguous()


def linear_reference(
    x: BFloat16[Tensor, "n E"], weight: BFloat16[Tensor, "p s 1024"], bias: Float32[Tensor, "F"], relu: bool
) -> BFloat16[Tensor, "n F"]:
    """Compute `linear` in float32 from the weights put back in order."""
    tiles = weight.unflatten(2, (2, STEP // 2, PANEL // 2, 2))
    ordered = tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)[: len(bias)]
    y = F.linear(x.float(), ordered.float(), bias)
    return (F.relu(y) if relu else y).bfloat16()


def _linear(x: Tensor, weight: Tensor, bias: Tensor, relu: bool) -> Tensor:
    module = kernels.module_for(x.device)
    if module is None or not hasattr(module, "linear") or not module.has_amx():
        return linear_reference(x, weight, bias, relu)
    out = x.new_empty(len(x), len(bias))
    module.linear(x.contiguous(), weight, bias, out, relu, torch.get_num_threads())
    return out


_library = torch.library.Library("rcnn", "FRAGMENT")  # torch.library.custom_op would load the compiler, for a second
_library.define("linear(Tensor x, Tensor weight, Tensor bias, bool relu) -> Tensor")
_library.impl("linear", _linear, "CPU")
OPERATOR = torch.ops.rcnn.linear
