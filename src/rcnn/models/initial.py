"""Initial weights of backbones that train without normalisation statistics of their own."""

from torch import nn


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
