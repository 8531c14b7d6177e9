"""MXNet's pre-activation ResNet-50/101 as mx-rcnn uses it: the trunk up to stage3, and stage4 for the second stage."""

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor, nn

from rcnn.models.initial import initialise
from rcnn.models.layers import activate, convolve
from rcnn.models.norm import FrozenBatchNorm
from rcnn.ops.pool import max_pool

EPS = 2e-5  # of every batch normalisation in MXNet's ResNet
UNITS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}


class PreActivationUnit(nn.Module):
    """Norm and ReLU before each convolution; the shortcut of a first unit starts after the first ReLU.

    Source: He et al. 2016, Identity Mappings, figure 4e; names of MXNet's symbol_resnet.
    """

    def __init__(self, channels: int, width: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.bn1 = FrozenBatchNorm(channels, eps=EPS)
        self.conv1 = nn.Conv2d(channels, width // 4, 1, bias=False)
        self.bn2 = FrozenBatchNorm(width // 4, eps=EPS)
        self.conv2 = nn.Conv2d(width // 4, width // 4, 3, stride, 1, bias=False)
        self.bn3 = FrozenBatchNorm(width // 4, eps=EPS)
        self.conv3 = nn.Conv2d(width // 4, width, 1, bias=False)
        self.sc = nn.Conv2d(channels, width, 1, stride, bias=False) if first else None
        initialise(self, last_of_block=("conv3",))

    def forward(self, x: Float[Tensor, "B F h w"]) -> Float[Tensor, "B E h2 w2"]:
        activated = activate(x, self.bn1)
        y = convolve(activated, self.conv1, self.bn2, relu=True)
        y = convolve(y, self.conv2, self.bn3, relu=True)
        return convolve(y, self.conv3, add=x if self.sc is None else convolve(activated, self.sc))


def stage_units(depth: int, stage: int) -> "OrderedDict[str, PreActivationUnit]":
    """The units of stage 1..4 by MXNet's names, `stage3_unit1` and so on."""
    width = 256 * 2 ** (stage - 1)
    units = OrderedDict()
    for i in range(UNITS[depth][stage - 1]):
        channels = width if i else (64 if stage == 1 else width // 2)
        stride = 2 if i == 0 and stage > 1 else 1
        units[f"stage{stage}_unit{i + 1}"] = PreActivationUnit(channels, width, stride, first=i == 0)
    return units


class ResNetV2C4(nn.Module):
    """Pre-activation trunk; its output is the raw residual sum at a sixteenth of the canvas (spec of mx-rcnn)."""

    channels = 1024
    stride = 16

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.bn_data = FrozenBatchNorm(3, eps=EPS, fix_gamma=True)
        self.conv0 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn0 = FrozenBatchNorm(64, eps=EPS)
        initialise(self)
        self.unit_names = []
        for stage in (1, 2, 3):
            for name, unit in stage_units(depth, stage).items():
                self.add_module(name, unit)
                self.unit_names.append(name)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 1024 h w"]:
        x = convolve(self.bn_data(x), self.conv0, self.bn0, relu=True)
        x = max_pool(x, 3, stride=2, padding=1)
        for name in self.unit_names:
            x = self.get_submodule(name)(x)
        return x
