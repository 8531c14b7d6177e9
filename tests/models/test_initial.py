"""He's weights keep the size of activations; the last convolution of a block begins at zero."""

import torch
from torch import nn

from rcnn.models.heads import FCHead
from rcnn.models.initial import RANDOM, Undrawn, initialise
from rcnn.models.resnet import ResNetC4, make_layer
from rcnn.models.vgg import VGG16


def test_blocks_begin_as_identity() -> None:
    stage = make_layer(18, 1)
    x = torch.rand(1, 64, 8, 8)
    torch.testing.assert_close(stage(x), x)


def test_activations_keep_their_size_through_a_deep_plain_network() -> None:
    x = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        for backbone in (VGG16(), ResNetC4(18)):
            assert 0.1 < float(backbone(x).std()) < 10


def test_biases_begin_at_zero_and_only_named_layers_too() -> None:
    block = nn.Sequential()
    block.add_module("first", nn.Conv2d(4, 4, 3))
    block.add_module("last", nn.Conv2d(4, 4, 3))
    initialise(block, last_of_block=("last",))
    assert not block.get_submodule("last").weight.any() and block.get_submodule("first").weight.any()
    assert not block.get_submodule("first").bias.any()


def test_undrawn_layers_cost_no_random_number_and_later_ones_do() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    with Undrawn():
        FCHead(4, 2, hidden=8, dropout=0.5, num_classes=3)
        ResNetC4(18)
        VGG16()
    assert torch.equal(torch.rand(2), expected)
    assert nn.Linear(50, 50).weight.std() > 0


def test_undrawn_leaves_all_else_as_it_is() -> None:
    with Undrawn():
        made = torch.zeros(3).fill_(2), torch.arange(3).float(), nn.init.constant_(torch.empty(2), 4)
        assert nn.init.normal_(made[0]) is made[0]
        assert not nn.Linear(3, 2).to(torch.float64).weight.grad_fn
    assert [x.tolist() for x in made] == [[2, 2, 2], [0, 1, 2], [4, 4]]
    assert all(hasattr(nn.init, name) for name in RANDOM)
