import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.weights.pixels import PixelRange, match_pixels, take_rgb

TORCHVISION = PixelRange((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
MXNET = PixelRange((123.68, 116.779, 103.939))


def feed(image: Tensor, pixels: PixelRange) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in pixels)
    return (image - mean) / std


def vgg_like(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    return F.conv2d(x, tensors["backbone.conv1_1.weight"], tensors["backbone.conv1_1.bias"])


def resnet_like(x: Tensor, tensors: dict[str, Tensor]) -> Tensor:
    norm = nn.BatchNorm2d(4).double().eval()
    norm.load_state_dict({name[13:]: value for name, value in tensors.items() if "bn1" in name}, strict=False)
    return norm(F.conv2d(x, tensors["backbone.conv1.weight"]))


def random(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)), dtype=torch.float64)


VGG = {"backbone.conv1_1.weight": random(4, 3, 3, 3), "backbone.conv1_1.bias": random(4)}
RESNET = {
    "backbone.conv1.weight": random(4, 3, 3, 3),
    "backbone.bn1.weight": random(4),
    "backbone.bn1.bias": random(4),
    "backbone.bn1.running_mean": random(4),
    "backbone.bn1.running_var": random(4).exp(),
}


@pytest.mark.parametrize(("network", "tensors"), [(vgg_like, VGG), (resnet_like, RESNET)])
@pytest.mark.parametrize(("trained", "wanted"), [(TORCHVISION, MXNET), (MXNET, TORCHVISION)])
def test_property_the_same_features_from_either_input(network, tensors, trained, wanted) -> None:
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 255
    changed = match_pixels(tensors, trained, wanted, source="a.pth")
    expected = network(feed(image, trained), tensors)
    assert torch.allclose(network(feed(image, wanted), changed), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(network(feed(image, wanted), tensors), expected, rtol=0.1, atol=0.1)


def test_nothing_changes_when_the_range_is_the_same_or_unknown() -> None:
    for trained in (MXNET, None):
        changed = match_pixels(VGG, trained, MXNET, source="a.pth")
        assert all(changed[name] is VGG[name] for name in VGG)


def test_given_tensors_stay_as_they_are() -> None:
    before = {name: tensor.clone() for name, tensor in VGG.items()}
    match_pixels(VGG, TORCHVISION, MXNET, source="a.pth")
    assert all(torch.equal(before[name], VGG[name]) for name in VGG)


def test_mxnet_resnets_are_refused_with_the_way_out() -> None:
    tensors = {"backbone.bn_data.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"--model\.pixel_mean 0 0 0 --model\.pixel_std 1 1 1"):
        match_pixels(tensors, PixelRange((0.0, 0.0, 0.0)), TORCHVISION, source="a.pth")


@pytest.mark.parametrize(
    ("network", "changes"),
    [
        (VGG, {"backbone.conv1_1.bias": None}),
        (VGG, {"backbone.conv1_1.bias": torch.zeros(3)}),
        (VGG, {"backbone.conv1_1.weight": torch.zeros(4, 1, 3, 3)}),
        (VGG, {"backbone.conv1_1.weight": torch.zeros(4)}),
        (RESNET, {"backbone.bn1.running_mean": None}),
        (RESNET, {"backbone.conv1.weight": torch.zeros(())}),
    ],
)
def test_a_first_layer_that_is_not_whole_is_refused(
    network: dict[str, Tensor], changes: dict[str, Tensor | None]
) -> None:
    tensors = {name: tensor for name, tensor in (network | changes).items() if tensor is not None}
    with pytest.raises(ValueError, match=r"a\.pth: its backbone\.conv1.*no whole first layer"):
        match_pixels(tensors, TORCHVISION, MXNET, source="a.pth")


@pytest.mark.parametrize(("network", "tensors"), [(vgg_like, VGG), (resnet_like, RESNET)])
def test_property_a_network_for_bgr_computes_the_same_of_rgb(network, tensors) -> None:
    image = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    changed = take_rgb(tensors)
    assert torch.allclose(network(image, changed), network(image.flip(1), tensors))
    assert changed.keys() == tensors.keys()


def test_a_range_in_words() -> None:
    assert str(MXNET) == "RGB of 0 to 255 minus 123.68 116.779 103.939"
    assert str(TORCHVISION) == "RGB of 0 to 255 minus 123.675 116.28 103.53, divided by 58.395 57.12 57.375"
