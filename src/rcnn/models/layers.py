"""A convolution or a linear layer with all that follows it in one call, so that inference can run it as one kernel."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.models import functions
from rcnn.models.norm import FrozenBatchNorm
from rcnn.models.quantised import pack_layers
from rcnn.ops import convolution, stem
from rcnn.ops import linear as tiles
from rcnn.ops.pool import max_pool
from rcnn.ops.winograd import pays, transform_weight, winograd

Map = Real[Tensor, "B F h w"]  # in uint8 between quantised layers


def convolve(
    x: Real[Tensor, "B E H W"],
    conv: nn.Module,
    norm: FrozenBatchNorm | None = None,
    *,
    relu: bool = False,
    add: Map | None = None,
) -> Map:
    """`relu(norm(conv(x)) + add)`, with the normalisation multiplied into the weights.

    Args:
        conv: a convolution, or what stands in its place: FusedConv, or a layer of `models.quantised`.
        norm: of a convolution without bias; None: none follows.
        add: the shortcut of a residual block; None: nothing is added.
    """
    if not isinstance(conv, nn.Conv2d):
        return conv(x, norm, relu=relu, add=add)
    (weight, bias), (x, sizes) = _fold(conv, norm), _seen(x, conv.kernel_size, _sizes(conv))
    if norm is None and (low := _low(conv, x)) is not None:
        weight = low
    if bias is not None and not torch.compiler.is_compiling():  # which fuses by itself
        x, weight, bias, add = _as_autocast(x, weight, bias, add)
        if can_pack(x) and conv.groups == 1:
            return functions.Convolution.apply(x, weight, bias, add, sizes, relu)
    return _plain(x, weight, bias, add, sizes, relu=relu)


def convolve_and_pool(x: Real[Tensor, "B E H W"], conv: nn.Module) -> Map:
    """`max_pool(convolve(x, conv, relu=True), 2, stride=2)`, as one kernel where that is faster."""
    if isinstance(conv, FusedConv):
        return conv(x, relu=True, pool=True)
    if isinstance(conv, nn.Conv2d) and conv.bias is not None and not torch.compiler.is_compiling():
        low = _low(conv, x)
        x, weight, bias = _as_autocast(x, conv.weight if low is None else low, conv.bias)
        if convolution.pays(weight, x, _sizes(conv), more=True):
            if _wants_gradient(x, conv):
                return functions.ConvolutionAndPool.apply(x, weight, bias, _sizes(conv))
            return convolution.convolution(x, convolution.pack(weight), bias.float(), relu=True, pool=True)
    return max_pool(convolve(x, conv, relu=True), 2, stride=2)


def convolve_pictures(x: Float[Tensor, "B 3 H W"], first: nn.Module, second: nn.Module) -> Map:
    """`convolve_and_pool(convolve(x, first, relu=True), second)`, as one kernel where that is faster."""
    (x,) = _as_autocast(x)
    if isinstance(first, FusedConv) and isinstance(second, FusedConv):
        run = _fused_stem(x, first, second)
    else:
        run = None if _wants_gradient(x, first, second) else _stem(x, first, second)
    return convolve_and_pool(convolve(x, first, relu=True), second) if run is None else run(x)


def _fused_stem(x: Tensor, first: "FusedConv", second: "FusedConv") -> Callable[[Tensor], Tensor] | None:
    """Made by the layers' first call, which lets them go; other threads may be at it too."""
    layers = first.conv, second.conv  # read before the stem, which is there before they go
    if second.stem is None and (made := _stem(x, *layers)) is not None:
        second.stem = made
        first.conv = second.conv = None
    return second.stem


def _stem(x: Tensor, first: nn.Module | None, second: nn.Module | None) -> Callable[[Tensor], Tensor] | None:
    """What two convolutions make of such pictures as one kernel; None: it does not serve them."""
    if not isinstance(first, nn.Conv2d) or not isinstance(second, nn.Conv2d):
        return None
    if first.bias is None or second.bias is None:
        return None
    one, other = (layer.weight.detach().to(x.dtype) for layer in (first, second))
    if not stem.pays(x, one, other, _sizes(first), _sizes(second)):
        return None
    one_bias, other_bias = (bias.detach().float() for bias in (first.bias, second.bias))
    packed = (stem.pack_first(one), one_bias, convolution.pack(other), other_bias)
    return lambda x: stem.stem(x, *packed)


def _wants_gradient(x: Tensor, *layers: nn.Module) -> bool:
    """Whether one may pass through the layers; the compiler is to see it in parts too."""
    wants = any(y.requires_grad for y in (x, *(p for layer in layers for p in layer.parameters())))
    return (torch.is_grad_enabled() and wants) or torch.compiler.is_compiling()


def dense(x: Real[Tensor, "n *E"], linear: nn.Module, *, relu: bool = False) -> Real[Tensor, "n D"]:
    """`relu(linear(x))`; of a map (n, F, s, s) the layer sees all values, channel by channel.

    Args:
        linear: a linear layer, or what stands in its place: LowRank, FusedLinear, or a layer of `models.quantised`.
    """
    if isinstance(linear, LowRank):
        return dense(dense(x, linear.first), linear.second, relu=relu)
    if not isinstance(linear, nn.Linear):
        return linear(x, relu=relu)
    x, low = x.flatten(1), _low(linear, x)
    if low is None:
        y = F.linear(x, linear.weight, linear.bias)
    else:
        y = functions.Linear.apply(*_as_autocast(x, low, linear.bias), getattr(linear, "factors", None))
    return F.relu(y, inplace=True) if relu else y


def _low(layer: nn.Module, x: Tensor) -> Tensor | None:
    """The weight in bfloat16, of a layer that is trained in it (`training.descent`), so that no step casts it."""
    return getattr(layer, "low", None) if torch.is_autocast_enabled(x.device.type) else None


class LowRank(nn.Module):
    """A linear layer of limited rank as two: one to as many values as the rank, without bias, and one from them.

    Source: Girshick 2015 (Fast R-CNN), 3.1.
    """

    def __init__(self, inputs: int, rank: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, rank, bias=False)
        self.second = nn.Linear(rank, outputs)


def activate(x: Map, norm: FrozenBatchNorm) -> Map:
    """`relu(norm(x))`: one kernel, where the normalisation is not trained, instead of three passes over memory."""
    scale, shift = (values.to(x.dtype) for values in norm.scale_and_shift())
    if scale.requires_grad or shift.requires_grad or torch.compiler.is_compiling() or not can_pack(x):
        return F.relu(norm(x), inplace=True)
    if x.requires_grad:
        return functions.NormReLU.apply(x, scale, shift)
    return functions.per_channel(x, scale, shift, "relu")


def truncate(weight: Float[Tensor, "D E"], rank: int) -> tuple[Float[Tensor, "r E"], Float[Tensor, "D r"]]:
    """The weights of the two layers of LowRank that come nearest to one layer's, by truncated SVD.

    Both take the root of the singular values, so that their numbers are of like size. Computed from the smaller Gram
    matrix, in float64.
    """
    wide = weight.double()
    if len(weight) > weight.shape[1]:
        second, first = truncate(weight.t(), rank)
        return first.t().contiguous(), second.t().contiguous()
    values, vectors = torch.linalg.eigh(wide @ wide.t())
    left = vectors[:, -rank:].flip(1)
    size = values[-rank:].flip(0).clamp(min=0).pow(0.25)  # the root of the singular value
    first = (left / size.clamp(min=1e-12)).t() @ wide
    return first.float(), (left * size).float()


def fuse(model: nn.Module, dtype: torch.dtype, *, winograd: bool = False) -> None:
    """Replace every convolution and linear layer of the model by its fused form; its own weights stay as they are.

    Args:
        winograd: convolutions that are faster by Winograd's method, with its rounding, run by it.
    """
    pack_layers(model, dtype)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Conv2d):
                setattr(module, name, FusedConv(child, dtype, winograd=winograd))
            elif isinstance(child, nn.Linear):
                setattr(module, name, FusedLinear(child, dtype))


def can_pack(x: Tensor) -> bool:
    """Whether oneDNN, as PyTorch brings it, runs fused layers on such a tensor from weights packed beforehand."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class FusedConv(nn.Module):
    """A convolution for inference: its normalisation folded in, weights cast and packed, once, by the first call."""

    def __init__(self, conv: nn.Conv2d, dtype: torch.dtype, *, winograd: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.winograd = winograd
        self.run: Callable[..., Tensor] = _plain
        self.kernel_size, self.sizes = conv.kernel_size, _sizes(conv)
        self.conv: nn.Conv2d | None = conv
        self.stem: Callable[[Tensor], Tensor] | None = None  # of this layer and the one before it
        self.weight = self.bias = torch.empty(0)

    @torch.no_grad()
    def _prepare(
        self, conv: nn.Conv2d, x: Float[Tensor, "B E H W"], norm: FrozenBatchNorm | None, sizes: Any, *, pool: bool
    ) -> None:
        """Make the weights ready for inputs like x, then let go of the layer; other threads may be at it too."""
        (weight, bias), (stride, padding, dilation, groups) = _fold(conv, norm), sizes
        bias = (weight.new_zeros(len(weight)) if bias is None else bias).detach()
        weight, run = weight.detach().to(self.dtype, memory_format=torch.channels_last), _plain
        if self.winograd and pays(conv, x):
            weight, run = transform_weight(weight), _winograd
        elif convolution.pays(weight, x, sizes, more=pool):
            weight, bias, run = convolution.pack(weight), bias.float(), functions.on_tiles
        elif can_pack(x) and groups == 1:
            reorder = torch.ops.mkldnn._reorder_convolution_weight
            weight, run = reorder(weight, padding, stride, dilation, groups, list(x.shape)), functions.by_onednn
        self.weight, self.bias, self.run = weight, bias if run is functions.on_tiles else bias.to(self.dtype), run
        self.conv = None

    def forward(
        self,
        x: Float[Tensor, "B E H W"],
        norm: FrozenBatchNorm | None = None,
        *,
        relu: bool = False,
        add: Map | None = None,
        pool: bool = False,
    ) -> Map:
        x, sizes = _seen(x, self.kernel_size, self.sizes)
        if (conv := self.conv) is not None:
            self._prepare(conv, x, norm, sizes, pool=pool)
        if pool and self.run is functions.on_tiles:
            return convolution.convolution(x, self.weight, self.bias, relu=relu, pool=True)
        y = self.run(x, self.weight, self.bias, add, sizes, relu=relu)
        return max_pool(y, 2, stride=2) if pool else y


class FusedLinear(nn.Module):
    """A linear layer for inference: weights cast and packed, once, by the first call.

    Of a map its columns are put in the order of memory, channels last, so that no map is copied.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.run: Callable[..., Tensor] = _plain_linear
        self.linear: nn.Linear | None = linear
        self.weight = self.bias = torch.empty(0)

    @torch.no_grad()
    def _prepare(self, linear: nn.Linear, x: Float[Tensor, "n *E"]) -> None:
        """Make the weights ready for inputs like x, then let go of the layer; other threads may be at it too."""
        weight = linear.weight.detach().to(self.dtype)
        if x.dim() == 4:
            weight = weight.unflatten(1, x.shape[1:]).permute(0, 2, 3, 1).flatten(1)
        weight, run = weight.contiguous(), _plain_linear
        bias = weight.new_zeros(len(weight)) if linear.bias is None else linear.bias.detach().to(self.dtype)
        if tiles.pays(linear, x):
            weight, bias, run = tiles.pack_weight(weight), bias.float(), tiles.linear
        elif can_pack(x):
            weight, run = torch.ops.mkldnn._reorder_linear_weight(weight, len(x)), _onednn_linear
        self.weight, self.bias, self.run = weight, bias, run
        self.linear = None

    def forward(self, x: Float[Tensor, "n *E"], *, relu: bool = False) -> Float[Tensor, "n D"]:
        if (linear := self.linear) is not None:
            self._prepare(linear, x)
        if x.dim() == 4:
            x = x.permute(0, 2, 3, 1)
        return self.run(x.flatten(1), self.weight, self.bias, relu=relu)


def _sizes(conv: nn.Conv2d) -> Any:
    return conv.stride, conv.padding, conv.dilation, conv.groups


def _seen(x: Float[Tensor, "B E H W"], kernel_size: Any, sizes: Any) -> tuple[Float[Tensor, "B E h w"], Any]:
    """What a convolution sees and its sizes there: one of 1 x 1 with a stride sees few places, faster by themselves."""
    (rows, columns), padding, *others = sizes
    if kernel_size != (1, 1) or (rows, columns) == (1, 1) or padding != (0, 0) or x.device.type != "cpu":
        return x, sizes
    return x[:, :, ::rows, ::columns], ((1, 1), padding, *others)


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, sizes: Any, *, relu: bool) -> Tensor:
    y = F.conv2d(x, weight, bias, *sizes)
    y = y if add is None else y + add
    return F.relu(y, inplace=True) if relu else y


def _plain_linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    y = F.linear(x, weight, bias)
    return F.relu(y, inplace=True) if relu else y


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """The same as one kernel."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "relu" if relu else "none", [], "")


def _winograd(x: Tensor, weight: Tensor, bias: Tensor, add: Tensor | None, sizes: Any, *, relu: bool) -> Tensor:
    """The same from a quarter of the multiplications."""
    return winograd(x, weight, bias, add, relu=relu)


def _as_autocast(*tensors: Any) -> tuple[Any, ...]:
    """The tensors as autocast would hand them to a convolution."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    return tuple(x if x is None else x.to(torch.get_autocast_dtype(device)) for x in tensors)


def _fold(conv: nn.Conv2d, norm: FrozenBatchNorm | None) -> tuple[Tensor, Tensor | None]:
    if norm is None:
        return conv.weight, conv.bias
    assert conv.bias is None
    scale, shift = norm.scale_and_shift()
    return conv.weight * scale[:, None, None, None], shift
