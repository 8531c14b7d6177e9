"""The steps of a quantised model's maps, from what a model in floating point computes on real pictures."""

from typing import Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from rcnn.models.layers import FusedConv, FusedLinear, convolve, dense
from rcnn.models.norm import FrozenBatchNorm
from rcnn.models.quantised import ADD, INPUT, LEVELS, OUTPUT, PLAIN, QuantisedConv, quantise_layers
from rcnn.ops.pool import max_pool


class Traced(Tensor):
    """A map that knows which layer made it, until something other than pooling or a layer that is watched takes it."""

    maker: "Watched"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **kwargs or {})
        if getattr(func, "__name__", "") == "__get__" and not isinstance(result, Tensor):
            return result  # a look at its shape or dtype
        makers = [x.maker for x in tree_leaves([args, kwargs]) if isinstance(x, Traced)]
        if func is max_pool:
            return trace(result, makers[0])
        for maker in makers:
            maker.is_seen = True
        return result


class Watched(nn.Module):
    """A layer of a detector that runs as it did and notes the range of its maps, and which layers they come from."""

    def __init__(self, layer: FusedConv | FusedLinear) -> None:
        super().__init__()
        self.layer = layer
        self.dtype = layer.dtype
        self.is_seen = False  # its result is used otherwise than by watched layers
        self.ranges = torch.tensor([[torch.inf, -torch.inf]] * 3)  # of INPUT, ADD and OUTPUT
        self.makers: dict[int, Watched | None] = {INPUT: None, ADD: None, OUTPUT: None}

    def forward(
        self, x: Tensor, norm: FrozenBatchNorm | None = None, *, relu: bool = False, add: Tensor | None = None
    ) -> Tensor:
        x, add = self._note(INPUT, x), None if add is None else self._note(ADD, add)
        if isinstance(self.layer, FusedLinear):
            y = dense(x, self.layer, relu=relu)
        else:
            y = convolve(x, self.layer, norm, relu=relu, add=add)
        return trace(self._note(OUTPUT, y), self)

    def _note(self, row: int, x: Tensor) -> Tensor:
        self.makers[row] = x.maker if isinstance(x, Traced) else None
        plain = x.as_subclass(Tensor)
        (low, high), known = plain.aminmax(), self.ranges[row]
        self.ranges[row] = torch.stack([torch.minimum(known[0], low.float()), torch.maximum(known[1], high.float())])
        return plain

    def steps(self) -> Float32[Tensor, "3 2"]:
        """Step and zero point of input, shortcut and output; zeros where there is none or it is not quantised."""
        return torch.tensor([self._of(INPUT), self._of(ADD), (0.0, 0.0) if self.is_seen else self._own(OUTPUT)])

    def _of(self, row: int) -> tuple[float, float]:
        maker = self.makers[row]
        return self._own(row) if maker is None or maker.is_seen else maker._own(OUTPUT)

    def _own(self, row: int) -> tuple[float, float]:
        lowest, highest = self.ranges[row].tolist()
        low, high = min(lowest, 0.0), max(highest, 0.0)
        if not high > low:  # never run, or nothing but zeros
            return (0.0, 0.0) if lowest > highest else (1.0, 0.0)
        step = (high - low) / LEVELS
        return step, float(round(-low / step))


def trace(x: Tensor, maker: Watched) -> Traced:
    """The map, with its maker's name on it."""
    traced = x.as_subclass(Traced)
    traced.maker = maker
    return traced


def watch(fused: nn.Module, left_out: tuple[str, ...] = ()) -> None:
    """Put watched layers into a fused copy that has not run yet; run it on pictures, then `quantise` the model.

    Args:
        left_out: prefixes of layers that the model's method never runs; their quantised forms stay unfilled.
    """
    for name, layer in list(fused.named_modules()):
        if isinstance(layer, FusedConv | FusedLinear) and name not in PLAIN and not name.startswith(left_out):
            fused.set_submodule(name, Watched(layer))


@torch.no_grad()
def quantise(model: nn.Module, watched: nn.Module) -> None:
    """Replace the model's layers by quantised ones, with the steps that its watched copy has seen.

    Raises:
        ValueError: a layer was never reached, or has or computed NaN or infinity.
    """
    layers = {name: layer for name, layer in watched.named_modules() if isinstance(layer, Watched)}
    before = {name: model.get_submodule(name) for name in layers}
    for name, layer in layers.items():  # a ReLU may make 0 of NaN, so that the result alone does not tell
        if not all(x.isfinite().all() for x in (layer.ranges[[INPUT, OUTPUT]], *before[name].parameters())):
            raise ValueError(f"--calibrate: {name} computed nothing, or no finite values, on these pictures")
    quantise_layers(model)
    for name, layer in layers.items():
        quantised, plain = model.get_submodule(name), before[name]
        assert isinstance(quantised, QuantisedConv) and isinstance(plain, nn.Conv2d | nn.Linear)
        quantised.fill(plain, layer.steps())
