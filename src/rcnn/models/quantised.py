"""Convolutions and linear layers in int8: weights in steps of their output channel, maps in uint8 steps of their own.

Source: Jacob et al. 2018 (Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference), 2. Differs: weights are symmetric and have a step for each output channel.
"""

import copy
import logging
from functools import cache
from typing import Any, TypeGuard

import torch
from jaxtyping import Float, Float32, Int8, Real, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.models.norm import FrozenBatchNorm

Map = Real[Tensor, "B F h w"]

INPUT, ADD, OUTPUT = 0, 1, 2  # rows of a layer's `steps`; a row is (step, zero point), and (0, 0) where there is none
LEVELS = 255  # of a map, from 0
CHUNK = 1 << 18  # values quantised at a time, so that they stay in the cache from pass to pass
PLAIN = {  # first layers of ResNets and last ones: small ones whose rounding is seen in the mAP (docs/speed.md)
    *("backbone.conv0", "backbone.conv1", "rpn.cls", "rpn.box", "head.cls_score", "head.bbox_pred"),
}

logger = logging.getLogger("rcnn.inference")


class QuantisedConv(nn.Module):
    """A convolution as a file holds it: int8 weights, their steps, and the steps of the maps around it.

    Its forward is the reference: the arithmetic of PackedConv in plain operators.

    Args:
        conv: of which sizes it is; nothing is taken from its weights, see `fill`.
    """

    weight: Tensor
    weight_step: Tensor
    bias: Tensor | None
    steps: Tensor

    def __init__(self, conv: nn.Conv2d | nn.Linear) -> None:
        super().__init__()
        self.sizes: Any = ((1, 1), (0, 0), (1, 1), 1)
        if isinstance(conv, nn.Conv2d):
            assert conv.groups == 1
            self.sizes = (conv.stride, conv.padding, conv.dilation, 1)
        self.dtype = torch.float32  # of results that are not quantised
        self.register_buffer("weight", torch.zeros(conv.weight.shape, dtype=torch.int8))
        self.register_buffer("weight_step", torch.ones(len(conv.weight)))
        self.register_buffer("bias", None if conv.bias is None else torch.zeros(len(conv.weight)))
        self.register_buffer("steps", torch.zeros(3, 2))

    @torch.no_grad()
    def fill(self, layer: nn.Conv2d | nn.Linear, steps: Float32[Tensor, "3 2"]) -> None:
        """Take the layer's weights, rounded, and the steps of input, shortcut and output."""
        self.weight, self.weight_step = quantise_weight(layer.weight.detach().float())
        self.bias, self.steps = None if layer.bias is None else layer.bias.detach().clone(), steps

    def plain(self) -> nn.Conv2d | nn.Linear:
        """A layer of floating point with the rounded weights."""
        weight = self.weight.float() * self.weight_step.view(-1, *[1] * (self.weight.dim() - 1))
        size, bias = (weight.shape[1], weight.shape[0]), self.bias is not None
        kernel: Any = tuple(weight.shape[2:])
        if kernel:
            stride, padding, dilation, groups = self.sizes
            layer = nn.Conv2d(*size, kernel, stride, padding, dilation, groups, bias, device="meta")
        else:
            layer = nn.Linear(*size, bias, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if self.bias is not None:
            layer.bias = nn.Parameter(self.bias, requires_grad=False)
        return layer

    def folded(self, norm: FrozenBatchNorm | None) -> tuple[Float32[Tensor, "E"], Float32[Tensor, "E"]]:
        """Steps of the weights and bias, with the normalisation multiplied in."""
        if norm is None:
            return self.weight_step, torch.zeros_like(self.weight_step) if self.bias is None else self.bias.float()
        scale, shift = norm.scale_and_shift()
        return (self.weight_step * scale).float(), shift.float()

    def forward(
        self,
        x: Real[Tensor, "B E H W"],
        norm: FrozenBatchNorm | None = None,
        *,
        relu: bool = False,
        add: Map | None = None,
    ) -> Map:
        of_input, of_add, of_output = self.steps.tolist()
        step, bias = self.folded(norm)
        centred = to_levels(x, *of_input).double() - of_input[1]
        y = F.conv2d(centred, _as_kernels(self.weight).double(), None, *self.sizes)
        y = y * (of_input[0] * step.double())[:, None, None] + bias.double()[:, None, None]
        if add is not None:
            y = y + from_levels(to_levels(add, *of_add) if of_output[0] else add, *of_add, dtype=torch.float64)
        y = F.relu(y) if relu else y
        return to_levels(y, *of_output) if of_output[0] else y.to(self.dtype)


class PackedConv(nn.Module):
    """The same as one kernel of oneDNN: normalisation folded in and weights packed, once, by the first call.

    Args:
        dtype: of results that are not quantised.
    """

    def __init__(self, conv: QuantisedConv, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.sizes = conv.sizes
        self.conv: QuantisedConv | None = conv
        self.steps = conv.steps.tolist()
        self.weight = self.weight_step = self.weight_zero = self.bias = torch.empty(0)

    @torch.no_grad()
    def _prepare(self, conv: QuantisedConv, x: UInt8[Tensor, "B E H W"], norm: FrozenBatchNorm | None) -> None:
        """Make the weights ready for inputs like x, then let go of the layer; other threads may be at it too."""
        (step, bias), (stride, padding, dilation, groups) = conv.folded(norm), self.sizes
        self.weight_step, self.bias = step.abs(), bias  # a normalisation may turn the sign of a channel
        self.weight_zero = torch.zeros(len(step), dtype=torch.int64)
        turned = conv.weight * step.sign().to(torch.int8).view(-1, *[1] * (conv.weight.dim() - 1))
        place = (stride, padding, dilation, groups, list(x.shape))
        values = _as_kernels(turned).contiguous()
        (step_of_x, zero), pack = self.steps[INPUT], torch.ops.onednn.qconv_prepack
        self.weight = pack(values, self.weight_step, step_of_x, int(zero), *place)
        self.conv = None

    def forward(
        self,
        x: Real[Tensor, "B E H W"],
        norm: FrozenBatchNorm | None = None,
        *,
        relu: bool = False,
        add: Map | None = None,
    ) -> Map:
        of_input, of_add, of_output = self.steps
        x = to_levels(x, *of_input)
        if (conv := self.conv) is not None:
            self._prepare(conv, x, norm)
        dtype = torch.uint8 if of_output[0] else self.dtype
        known = (x, of_input[0], int(of_input[1]), self.weight, self.weight_step, self.weight_zero)
        after = (self.bias, *self.sizes, of_output[0] or 1.0, int(of_output[1]), dtype)
        run, relus = torch.ops.onednn.qconv2d_pointwise, "relu" if relu else "none"
        if add is None:
            return run(*known, *after, relus, [], "")
        if of_output[0]:
            sum_of, units = to_levels(add, *of_add), (of_add[0], int(of_add[1]))
        else:
            sum_of, units = from_levels(add, *of_add, dtype=self.dtype), (1.0, 0)
        sum_of = sum_of.clone() if sum_of is add else sum_of  # the sum is written over it
        return run.binary(*known, sum_of, *after, *units, "sum", 1.0, relus, [], "")


class QuantisedLinear(QuantisedConv):
    """A linear layer, which is a 1 x 1 convolution of a map as high as there are rows."""

    def forward(self, x: Real[Tensor, "n *E"], *, relu: bool = False) -> Real[Tensor, "n D"]:
        return _as_rows(super().forward(_as_map(x.flatten(1)), relu=relu))


class PackedLinear(PackedConv):
    """The same as one kernel of oneDNN; of a map its columns are put in the order of memory, channels last."""

    def forward(self, x: Real[Tensor, "n *E"], *, relu: bool = False) -> Real[Tensor, "n D"]:
        if x.dim() == 4:
            if (conv := self.conv) is not None:
                self.conv = _channels_last(conv, x.shape[1:])
            x = x.permute(0, 2, 3, 1)
        return _as_rows(super().forward(_as_map(x.flatten(1)), relu=relu))


def quantise_layers(model: nn.Module) -> None:
    """Put quantised layers, yet to be filled, for the model's convolutions and linear layers but those of PLAIN."""
    for name, layer in list(model.named_modules()):
        if can_quantise(layer, name):
            kind = QuantisedConv if isinstance(layer, nn.Conv2d) else QuantisedLinear
            model.set_submodule(name, kind(layer))


def can_quantise(layer: nn.Module, name: str) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether a layer of this name in a detector has a quantised form."""
    return isinstance(layer, nn.Conv2d | nn.Linear) and name not in PLAIN and getattr(layer, "groups", 1) == 1


def check_steps(model: nn.Module, source: object, left_out: tuple[str, ...] = ()) -> None:
    """Refuse steps from a file that no calibration writes.

    Args:
        source: the file, for the message.
        left_out: prefixes of layers that the model's method never runs.

    Raises:
        ValueError: naming the file and the layer.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, QuantisedConv) and not name.startswith(left_out):
            steps, zeros = layer.steps.unbind(1)
            if not (steps[INPUT] > 0 and (steps >= 0).all() and ((zeros >= 0) & (zeros <= LEVELS)).all()):
                raise ValueError(
                    f"{source}: {name}.steps holds {layer.steps.tolist()}: no steps above 0 with zero points from 0 to "
                    f"{LEVELS}; the file is damaged, make it again (rcnn convert --int8)"
                )


def pack_layers(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace quantised layers by packed ones, or, with a warning, by plain ones where no kernel runs them."""
    found = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantisedConv)]
    if not found:
        return
    runs = has_kernels(found[0][1].weight.device)
    if not runs:
        logger.warning("no kernel for int8, which wants VNNI or AMX; the rounded weights run in floating point")
    for name, layer in found:
        packed = PackedLinear if isinstance(layer, QuantisedLinear) else PackedConv
        model.set_submodule(name, packed(layer, dtype) if runs else layer.plain())


@cache
def has_kernels(device: torch.device) -> bool:
    """Whether oneDNN, as PyTorch brings it, multiplies int8 here, and without overflow on the way.

    Tried on the largest numbers: without VNNI, or where ONEDNN_MAX_CPU_ISA keeps it off, its sums of two products end
    at 16 bits, silently.
    """
    if device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    layer, x = QuantisedConv(nn.Conv2d(64, 64, 1, device="meta")), torch.full((1, 64, 1, 1), LEVELS, dtype=torch.uint8)
    layer.weight.fill_(127)
    layer.steps[INPUT, 0] = 1.0
    try:
        return torch.equal(PackedConv(layer, torch.float32)(x), layer(x))
    except (RuntimeError, AttributeError):  # no such operator, or none for this processor
        return False


def quantise_weight(weight: Float32[Tensor, "D *E"]) -> tuple[Int8[Tensor, "D *E"], Float32[Tensor, "D"]]:
    """The weight in steps of each output, from -127 to 127, and these steps."""
    step = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
    levels = (weight / step.view(-1, *[1] * (weight.dim() - 1))).round()
    return levels.to(torch.int8), step


def to_levels(x: Map, step: float, zero: float) -> UInt8[Tensor, "B F h w"]:
    """The map in steps of `step` from the zero point; one that is quantised already stays as it is."""
    if x.dtype == torch.uint8:
        return x
    x = x.contiguous(memory_format=torch.channels_last)
    levels = torch.empty_like(x, dtype=torch.uint8)
    values, places = (y.permute(0, 2, 3, 1).view(-1) for y in (x, levels))
    for value, place in zip(values.split(CHUNK), places.split(CHUNK), strict=True):
        place.copy_(
            value.to(torch.float32, copy=True).mul_(1 / step).add_(zero + 0.5).clamp_(0, LEVELS)
        )  # which cuts the fraction off
    return levels


def from_levels(x: Map, step: float, zero: float, *, dtype: torch.dtype) -> Float[Tensor, "B F h w"]:
    """The values of a quantised map in floating point."""
    return ((x.float() - zero) * step).to(dtype) if x.dtype == torch.uint8 else x.to(dtype)


def _as_kernels(weight: Tensor) -> Tensor:
    return weight[:, :, None, None] if weight.dim() == 2 else weight


def _as_map(x: Real[Tensor, "n E"]) -> Real[Tensor, "1 E n 1"]:
    return x[None, :, None].permute(0, 3, 1, 2)


def _as_rows(x: Real[Tensor, "1 D n 1"]) -> Real[Tensor, "n D"]:
    return x[0, :, :, 0].t()


def _channels_last(linear: QuantisedConv, shape: torch.Size) -> QuantisedConv:
    """A copy of the layer whose columns follow a map (n, *shape) as it lies in memory."""
    ordered = copy.copy(linear)
    ordered._buffers = dict(linear._buffers)
    ordered.weight = linear.weight.unflatten(1, shape).permute(0, 2, 3, 1).flatten(1)
    return ordered
