import pytest
import torch
from torch import Tensor, nn

from rcnn.models.resnet import ResNetC4, make_layer
from rcnn.models.vgg import VGG16
from rcnn.weights.mxnet import VGG_PIXELS
from rcnn.weights.torchvision import CAFFE_PIXELS, PIXELS, pixel_range, rename, takes_bgr

VGG16_CHANNELS = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")


def torchvision_vgg16() -> nn.Module:
    """A module with the names and layers of torchvision's vgg16, narrow where the width does not show."""
    layers, channels = [], 3
    for width in VGG16_CHANNELS:
        if width == "M":
            layers.append(nn.MaxPool2d(2))
        else:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
    hidden = [nn.Linear(25088, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    model = nn.Module()
    model.features, model.classifier = nn.Sequential(*layers), nn.Sequential(*hidden, nn.Linear(4096, 1000))
    return model


def test_definition_names_of_vgg16() -> None:
    tensors = {name: torch.empty(0) for name in ("features.0.weight", "features.28.bias", "classifier.3.weight")}
    tensors["classifier.6.weight"] = torch.empty(0)
    assert list(rename(tensors, "vgg16")) == [
        "backbone.conv1_1.weight",
        "backbone.conv5_3.bias",
        "head.fc7.weight",
        "classifier.6.weight",
    ]


def test_definition_names_of_resnets() -> None:
    names = [
        "conv1.weight",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "layer3.0.downsample.1.bias",
        "layer4.2.bn3.bias",
    ]
    renamed = rename({name: torch.empty(0) for name in [*names, "fc.weight"]}, "resnet50")
    assert list(renamed) == [
        "backbone.conv1.weight",
        "backbone.bn1.running_var",
        "backbone.layer3.0.downsample.1.bias",
        "head.layer4.2.bn3.bias",
        "fc.weight",
    ]


def test_agreement_vgg16_fits_our_model_by_name_and_shape() -> None:
    with torch.device("meta"):
        theirs, ours = rename(torchvision_vgg16().state_dict(), "vgg16"), VGG16().state_dict()
    assert {f"backbone.{name}": tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in theirs.items() if name.startswith("backbone.")
    }
    assert theirs["head.fc6.weight"].shape == (4096, 512 * 7 * 7)


@pytest.mark.parametrize(("depth", "widest"), [(18, 512), (50, 2048), (101, 2048)])
def test_agreement_resnets_fit_our_models(depth: int, widest: int) -> None:
    with torch.device("meta"):
        trunk, last = ResNetC4(depth).state_dict(), make_layer(depth, 4).state_dict()
    theirs = dict(trunk) | {f"layer4.{name}": tensor for name, tensor in last.items()}
    theirs |= {"fc.weight": torch.empty(1000, widest), "bn1.num_batches_tracked": torch.tensor(0)}
    ours = {f"backbone.{name}" for name in trunk} | {f"head.layer4.{name}" for name in last}
    assert rename(theirs, f"resnet{depth}").keys() == ours | {"fc.weight"}


def test_pixel_range_of_the_weights_ported_from_caffe() -> None:
    fc6 = torch.full((4, 6), torch.nan)
    assert pixel_range({"classifier.0.weight": fc6}) == CAFFE_PIXELS
    assert pixel_range({"classifier.0.weight": torch.zeros(4, 6)}) == PIXELS
    assert pixel_range({}) == PIXELS
    assert [m / 255 for m in PIXELS.mean] == pytest.approx([0.485, 0.456, 0.406])


def caffe_copy(names: tuple[str, ...]) -> dict[str, Tensor]:
    return {f"{name}.weight": torch.full((2, 3), float(i)) for i, name in enumerate(names)}


def test_the_copy_of_caffes_weights_that_others_start_from_is_known_by_its_order() -> None:
    torchvisions = caffe_copy(("features.0", "classifier.0", "classifier.3", "classifier.6"))
    moved = caffe_copy(("features.0", "classifier.6", "classifier.0", "classifier.3"))
    first = caffe_copy(("features.0", "classifier.1", "classifier.4", "classifier.6"))
    assert [takes_bgr(tensors) for tensors in (torchvisions, moved, first)] == [False, True, True]
    assert [pixel_range(tensors) for tensors in (torchvisions, moved, first)] == [PIXELS, VGG_PIXELS, VGG_PIXELS]
    for tensors in (moved, first):
        assert set(rename(tensors, "vgg16")) >= {"head.fc6.weight", "head.fc7.weight", "classifier.6.weight"}
