import pytest
import torch
from torch import nn

from rcnn.models.norm import FrozenBatchNorm
from rcnn.models.resnet import BasicBlock, Bottleneck, ResNetC4, make_layer
from rcnn.testing import assert_is_backbone

# names and shapes of torchvision's resnet18 and resnet50, from its published weights
TORCHVISION = {
    18: {
        "conv1.weight": (64, 3, 7, 7),
        "bn1.running_var": (64,),
        "layer1.0.conv1.weight": (64, 64, 3, 3),
        "layer1.1.bn2.bias": (64,),
        "layer2.0.downsample.0.weight": (128, 64, 1, 1),
        "layer2.0.downsample.1.running_mean": (128,),
        "layer3.0.conv1.weight": (256, 128, 3, 3),
        "layer3.1.bn2.weight": (256,),
    },
    50: {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer2.0.conv2.weight": (128, 128, 3, 3),
        "layer2.3.conv3.weight": (512, 128, 1, 1),
        "layer3.0.downsample.1.weight": (1024,),
        "layer3.5.bn3.running_var": (1024,),
    },
    101: {"layer3.22.conv1.weight": (256, 1024, 1, 1), "layer3.22.bn3.bias": (1024,)},
}
# convolutions with their four tensors of batch normalisation, without layer4; num_batches_tracked is not stored
TENSORS = {18: 5 * 15, 50: 5 * 43, 101: 5 * 94}


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_definition_names_and_shapes_are_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        state = ResNetC4(depth).state_dict()
    assert {name: tuple(state[name].shape) for name in TORCHVISION[depth]} == TORCHVISION[depth]
    assert not any(name.startswith(("fc", "layer4")) for name in state)
    assert len(state) == TENSORS[depth]


@pytest.mark.parametrize(("depth", "channels"), [(18, 256), (50, 1024)])
def test_shape_at_a_sixteenth(depth: int, channels: int) -> None:
    backbone = ResNetC4(depth).eval()
    assert backbone.channels == channels
    with torch.no_grad():
        assert backbone(torch.randn(1, 3, 64, 96)).shape == (1, channels, 4, 6)
        assert backbone(torch.randn(1, 3, 65, 97)).shape == (1, channels, 5, 7)


def test_it_keeps_the_contract_of_a_backbone() -> None:
    assert_is_backbone(ResNetC4(18))


def unfolded(block: BasicBlock | Bottleneck, x: torch.Tensor) -> torch.Tensor:
    """The block as the paper draws it, one operation after the other."""
    pairs = [(block.conv1, block.bn1), (block.conv2, block.bn2)]
    if isinstance(block, Bottleneck):
        pairs.append((block.conv3, block.bn3))
    y = x
    for i, (conv, norm) in enumerate(pairs):
        y = norm(conv(y if i == 0 else y.relu()))
    shortcut = x if block.downsample is None else block.downsample(x)
    return (y + shortcut).relu()


@pytest.mark.parametrize(
    "block", [BasicBlock(8, 8, 1), BasicBlock(8, 6, 2), Bottleneck(8, 2, 1), Bottleneck(8, 4, 2)], ids=repr
)
def test_agreement_of_folded_blocks_with_unfolded_ones(block: BasicBlock | Bottleneck) -> None:
    for norm in block.modules():
        if isinstance(norm, FrozenBatchNorm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 8, 6, 9)
    kept = x.clone()
    assert torch.allclose(block(x), unfolded(block, x), atol=1e-4)
    assert torch.equal(x, kept), "a block must not change its input"


def test_the_stride_of_a_bottleneck_is_in_its_3x3() -> None:
    strides = [module.stride for module in make_layer(50, 2)[0].modules() if isinstance(module, nn.Conv2d)]
    assert strides == [(1, 1), (2, 2), (1, 1), (2, 2)]
