import torch
from torch import nn
from torch.nn import functional as F

from rcnn.models.vgg import VGG16
from rcnn.testing import assert_is_backbone

# configuration D, table 1 of the paper, up to the last pooling
NAMES = [f"conv{stage}_{i}" for stage, count in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, count + 1)]
WIDTHS = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]


def test_definition_names_and_shapes() -> None:
    with torch.device("meta"):
        state = VGG16().state_dict()
    assert list(state) == [f"{name}.{kind}" for name in NAMES for kind in ("weight", "bias")]
    inputs = [3, *WIDTHS[:-1]]
    for name, out, inside in zip(NAMES, WIDTHS, inputs, strict=True):
        assert state[f"{name}.weight"].shape == (out, inside, 3, 3)


def test_agreement_with_the_network_written_out() -> None:
    vgg = VGG16().eval()
    layers: list[nn.Module] = []
    for name in NAMES:
        layers += [vgg.get_submodule(name), nn.ReLU()]
        if name in ("conv1_2", "conv2_2", "conv3_3", "conv4_3"):
            layers.append(nn.MaxPool2d(2, 2))
    x = torch.randn(1, 3, 33, 50)
    with torch.no_grad():
        features = vgg(x)
        assert features.shape == (1, 512, 2, 3)  # no pooling after conv5_3: a sixteenth, rounded down
        written_out = nn.Sequential(*layers)(x)  # by other kernels, which round otherwise
        assert torch.allclose(features, written_out, rtol=1e-4, atol=1e-5 * written_out.abs().max().item())
        assert torch.equal(features, F.relu(features))


def test_it_keeps_the_contract_of_a_backbone() -> None:
    assert_is_backbone(VGG16())
