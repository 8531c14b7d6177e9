"""ResNet-18/50/101 with torchvision's names: the trunk up to layer3, and layer4 for the second stage."""

from jaxtyping import Float, Real
from torch import Tensor, nn

from rcnn.models.initial import initialise
from rcnn.models.layers import convolve
from rcnn.models.norm import FrozenBatchNorm
from rcnn.ops.pool import max_pool


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut. Source: He et al. 2016, figure 5 left."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Real[Tensor, "B F h w"]) -> Real[Tensor, "B E h2 w2"]:
        y = convolve(x, self.conv1, self.bn1, relu=True)
        return convolve(y, self.conv2, self.bn2, add=_apply_shortcut(self.downsample, x), relu=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 (which carries the stride), 1x1 around a shortcut. Source: He et al. 2016, figure 5 right.

    Differs: the stride is in the 3x3 convolution, as in torchvision's weights.
    """

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 1, bias=False)
        self.bn1 = FrozenBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = FrozenBatchNorm(width)
        self.conv3 = nn.Conv2d(width, width * 4, 1, bias=False)
        self.bn3 = FrozenBatchNorm(width * 4)
        self.downsample = _shortcut(channels, width * 4, stride)

    def forward(self, x: Real[Tensor, "B F h w"]) -> Real[Tensor, "B E h2 w2"]:
        y = convolve(x, self.conv1, self.bn1, relu=True)
        y = convolve(y, self.conv2, self.bn2, relu=True)
        return convolve(y, self.conv3, self.bn3, add=_apply_shortcut(self.downsample, x), relu=True)


def _shortcut(channels: int, out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels == out:
        return None
    return nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), FrozenBatchNorm(out))


def _apply_shortcut(downsample: nn.Sequential | None, x: Tensor) -> Tensor:
    if downsample is None:
        return x
    conv, norm = downsample
    assert isinstance(norm, FrozenBatchNorm)
    return convolve(x, conv, norm)


Block = type[BasicBlock] | type[Bottleneck]
DEPTHS: dict[int, tuple[Block, tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
}


def make_layer(depth: int, layer: int) -> nn.Sequential:
    """Stage `layer` (1..4) of the ResNet of `depth`."""
    block, counts = DEPTHS[depth]
    width = 64 * 2 ** (layer - 1)
    channels = 64 if layer == 1 else width // 2 * block.expansion
    blocks = [block(channels, width, 1 if layer == 1 else 2)]
    blocks += [block(width * block.expansion, width, 1) for _ in range(counts[layer - 1] - 1)]
    stage = nn.Sequential(*blocks)
    initialise(stage, last_of_block=("conv2",) if block is BasicBlock else ("conv3",))
    return stage


class ResNetC4(nn.Module):
    """The ResNet up to layer3: features at a sixteenth of the canvas. Source: He et al. 2016, appendix A."""

    stride = 16

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = FrozenBatchNorm(64)
        initialise(self)
        self.layer1, self.layer2, self.layer3 = (make_layer(depth, layer) for layer in (1, 2, 3))
        self.channels = 256 * DEPTHS[depth][0].expansion

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B F h w"]:
        x = convolve(x, self.conv1, self.bn1, relu=True)
        x = max_pool(x, 3, stride=2, padding=1)
        return self.layer3(self.layer2(self.layer1(x)))
