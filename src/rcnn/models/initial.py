"""Initial weights: of backbones that train without normalisation statistics of their own; and none at all."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode

RANDOM = {"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"}  # what layers are initialised by


def initialise(backbone: nn.Module, *, last_of_block: tuple[str, ...] = ()) -> None:
    """He's normal weights; zero in the last convolution of each residual block, so that a block begins as identity.

    Source: He et al. 2015, Delving Deep into Rectifiers, 2.2; Zhang et al. 2019, Fixup, section 3.

    Args:
        last_of_block: names by which a block calls its last convolution.
    """
    for name, module in backbone.named_modules():
        if not isinstance(module, nn.Conv2d):
            continue
        if name.rsplit(".", 1)[-1] in last_of_block:
            nn.init.zeros_(module.weight)
        else:
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Undrawn(TorchFunctionMode):
    """Inside this block new layers draw no random weights: they hold whatever their memory held.

    For models whose weights come from a file; drawing those of VGG16 takes a second.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in RANDOM:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
