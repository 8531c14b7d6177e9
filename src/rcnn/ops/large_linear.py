"""The products of a large linear layer in training, in bfloat16, on processors with AMX.

Its weight changes at every step, so the compiled kernels read and write it as it lies in memory, once a product. The
references, and the operators `rcnn::large_linear`, `rcnn::large_linear_weight` and `rcnn::large_linear_update_`.
"""

from types import ModuleType

import torch
from jaxtyping import BFloat16, Float32
from torch import Tensor
from torch.nn import functional as F

from rcnn.ops import kernels
from rcnn.ops.update import Rule, sgd_reference

CHUNK = 256  # inputs that the compiled kernel sums at a time
WIDTH = 32  # outputs or inputs of two tiles
FEWEST_ROWS = 16  # of less, most of a tile of rows stays empty
MOST_ROWS = 256  # of more, oneDNN is as fast or faster: the products take longer than the weight's way
LEAST_WEIGHTS = 2**20  # of less, there is little to gain


def large_linear(
    x: BFloat16[Tensor, "n E"], weight: BFloat16[Tensor, "F E"], bias: BFloat16[Tensor, "F"]
) -> BFloat16[Tensor, "n F"]:
    """`x @ weight.t() + bias`, summed in float32 and rounded once; bits do not depend on the number of threads."""
    return OPERATOR(x, weight, bias)


def large_linear_weight(grad: BFloat16[Tensor, "n F"], x: BFloat16[Tensor, "n E"]) -> BFloat16[Tensor, "F E"]:
    """`grad.t() @ x`, the gradient of the weight, in the same way."""
    return WEIGHT_OPERATOR(grad, x)


def large_linear_update_(
    weight: Float32[Tensor, "F E"],
    grad: BFloat16[Tensor, "n F"],
    x: BFloat16[Tensor, "n E"],
    buffer: Float32[Tensor, "F E"],
    low: BFloat16[Tensor, "F E"],
    rule: Rule,
) -> None:
    """`update.sgd_` by the gradient `grad.t() @ x`, in float32: it is as large as the weight and never in memory."""
    UPDATE_OPERATOR(weight.detach(), grad.detach(), x.detach(), buffer, low.detach(), *rule)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether the operators are the faster way for a layer of this weight and such inputs."""
    large = FEWEST_ROWS <= len(x) <= MOST_ROWS and weight.numel() >= LEAST_WEIGHTS
    fits = weight.shape[1] % CHUNK == 0 and len(weight) % WIDTH == 0
    return large and fits and x.dtype == weight.dtype and _module(x) is not None


def large_linear_reference(
    x: BFloat16[Tensor, "n E"], weight: BFloat16[Tensor, "F E"], bias: BFloat16[Tensor, "F"]
) -> BFloat16[Tensor, "n F"]:
    """Compute `large_linear` in float32."""
    return F.linear(x.float(), weight.float(), bias.float()).bfloat16()


def large_linear_weight_reference(grad: BFloat16[Tensor, "n F"], x: BFloat16[Tensor, "n E"]) -> BFloat16[Tensor, "F E"]:
    """Compute `large_linear_weight` in float32."""
    return (grad.float().t() @ x.float()).bfloat16()


def large_linear_update_reference_(
    weight: Float32[Tensor, "F E"],
    grad: BFloat16[Tensor, "n F"],
    x: BFloat16[Tensor, "n E"],
    buffer: Float32[Tensor, "F E"],
    low: BFloat16[Tensor, "F E"],
    rule: Rule,
) -> None:
    """Compute `large_linear_update_` one after the other."""
    sgd_reference(weight, [grad.float().t() @ x.float()], buffer, low, rule)


def _module(x: Tensor) -> ModuleType | None:
    """The compiled kernels, where they serve the type and the processor."""
    module = kernels.module_for(x.device) if x.dtype == torch.bfloat16 else None
    return module if module is not None and hasattr(module, "large_linear") and module.has_amx() else None


def _in_order(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor.detach().contiguous() for tensor in tensors)


def _large_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    module = _module(x)
    if module is None or x.shape[1] % CHUNK or len(weight) % WIDTH:
        return large_linear_reference(x, weight, bias)
    out = x.new_empty(len(x), len(weight))
    module.large_linear(*_in_order(x, weight, bias[None]), out, torch.get_num_threads())
    return out


def _large_linear_weight(grad: Tensor, x: Tensor) -> Tensor:
    module = _module(x)
    if module is None or not len(x) or grad.shape[1] % WIDTH or x.shape[1] % WIDTH:
        return large_linear_weight_reference(grad, x)
    out = x.new_empty(grad.shape[1], x.shape[1])
    module.large_gradient(*_in_order(grad, x), out, torch.get_num_threads())
    return out


def _large_linear_update_(
    weight: Tensor,
    grad: Tensor,
    x: Tensor,
    buffer: Tensor,
    low: Tensor,
    lr: float,
    momentum: float,
    decay: float,
    clip: float,
) -> None:
    module, rule = _module(x), Rule(lr, momentum, decay, clip)
    in_place = all(y.is_contiguous() for y in (weight, buffer, low))
    if module is None or not in_place or not len(x) or grad.shape[1] % WIDTH or x.shape[1] % WIDTH:
        return large_linear_update_reference_(weight, grad, x, buffer, low, rule)
    module.large_update(*_in_order(grad, x), weight, buffer, low, *rule, torch.get_num_threads())


_library = torch.library.Library("rcnn", "FRAGMENT")  # torch.library.custom_op would load the compiler, for a second
_library.define("large_linear(Tensor x, Tensor weight, Tensor bias) -> Tensor")
_library.define("large_linear_weight(Tensor grad, Tensor x) -> Tensor")
_library.define(
    "large_linear_update_(Tensor(a!) weight, Tensor grad, Tensor x, Tensor(b!) buffer, Tensor(c!) low,"
    " float lr, float momentum, float decay, float clip) -> ()"
)
_library.impl("large_linear", _large_linear, "CPU")
_library.impl("large_linear_weight", _large_linear_weight, "CPU")
_library.impl("large_linear_update_", _large_linear_update_, "CPU")
OPERATOR = torch.ops.rcnn.large_linear
WEIGHT_OPERATOR = torch.ops.rcnn.large_linear_weight
UPDATE_OPERATOR = torch.ops.rcnn.large_linear_update_
