import pytest
import torch
from torch import nn

from rcnn.models.heads import FCHead, Layer4Head, Stage4HeadV2
from rcnn.models.resnet import ResNetC4
from rcnn.models.resnet_v2 import ResNetV2C4
from rcnn.models.vgg import VGG16
from rcnn.weights.networks import BACKBONES, recognise, refuse_another

STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


def zeros(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def resnet(blocks: tuple[int, ...], *, bottleneck: bool, width: int = 64, groups: int = 1) -> dict[str, torch.Tensor]:
    """Convolutions of torchvision's ResNets, by name; only the first block's shapes are true."""
    tensors = {"conv1.weight": (64, 3, 7, 7)}
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            prefix = f"layer{stage}.{block}."
            tensors[prefix + "conv1.weight"] = (width, 64, 1, 1)
            tensors[prefix + "conv2.weight"] = (width, width // groups, 3, 3)
            if bottleneck:
                tensors[prefix + "conv3.weight"] = (256, width, 1, 1)
    return zeros(**tensors)


def vgg(convolutions: int, *, bn: bool = False) -> dict[str, torch.Tensor]:
    tensors = {f"features.{i}.weight": (8, 8, 3, 3) for i in range(0, 2 * convolutions, 2)}
    return zeros(**tensors, **({"features.1.running_mean": (8,)} if bn else {}))


@pytest.mark.parametrize(
    ("tensors", "name"),
    [
        (resnet((2, 2, 2), bottleneck=False), "resnet18"),
        (resnet((3, 4, 6, 3), bottleneck=False), "resnet34"),
        (resnet((3, 4, 6, 3), bottleneck=True), "resnet50"),
        (resnet((3, 4, 23, 3), bottleneck=True), "resnet101"),
        (resnet((3, 8, 36, 3), bottleneck=True), "resnet152"),
        (resnet((3, 4, 6, 3), bottleneck=True, width=128), "a wide resnet50"),
        (resnet((3, 4, 6, 3), bottleneck=True, width=128, groups=32), "a grouped resnet50"),
        (resnet((1, 1, 1, 1), bottleneck=True), "a ResNet of 1, 1, 1 blocks"),
        (vgg(8), "vgg11"),
        (vgg(13), "vgg16"),
        (vgg(13, bn=True), "vgg16_bn"),
        (vgg(16), "vgg19"),
    ],
)
def test_definition_networks_by_name(tensors: dict[str, torch.Tensor], name: str) -> None:
    found = recognise(tensors)
    assert found is not None
    assert found.name == name
    assert found.evidence in tensors


def test_unknown_tensors_are_no_network() -> None:
    assert recognise(zeros(x=(1,))) is None
    assert recognise({}) is None


@pytest.mark.parametrize("name", BACKBONES)
def test_agreement_with_our_models(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            depth = int(name.removeprefix("resnet").removesuffix("_v2")) if name != "vgg16" else 0
            if not depth:
                self.backbone, self.head = VGG16(), FCHead(512, 7, hidden=64, dropout=0.5, num_classes=3)
            elif name.endswith("_v2"):
                self.backbone, self.head = ResNetV2C4(depth), Stage4HeadV2(depth, 3)
            else:
                self.backbone, self.head = ResNetC4(depth), Layer4Head(depth, 3)

    with torch.device("meta"):
        found = recognise(Model().state_dict())
    assert found is not None
    assert found.name == name


def test_another_network_is_refused_with_the_way_out() -> None:
    tensors = resnet((3, 4, 6, 3), bottleneck=True)
    with pytest.raises(ValueError, match=r"w\.pth: this file holds resnet50 \(layer3\.5\.conv3\.weight .*wants vgg16"):
        refuse_another(tensors, "vgg16", source="w.pth")
    with pytest.raises(ValueError, match=r"or choose --model\.backbone resnet50$"):
        refuse_another(tensors, "resnet101", source="w.pth")
    with pytest.raises(ValueError, match=r"holds resnet34.*give weights of resnet50 as --model\.pretrained$"):
        refuse_another(resnet((3, 4, 6), bottleneck=False), "resnet50", source="w.pth")


def test_the_wanted_and_the_unknown_pass() -> None:
    refuse_another(resnet((3, 4, 6), bottleneck=True), "resnet50", source="w.pth")
    refuse_another(zeros(x=(1,)), "resnet50", source="w.pth")
