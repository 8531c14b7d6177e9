"""torchvision's names of VGG16 and ResNet classifiers, and the input they were trained on."""

import re
from collections.abc import Mapping

from torch import Tensor

from rcnn.weights.mxnet import VGG_PIXELS
from rcnn.weights.pixels import PixelRange

# What every model of torchvision takes: RGB / 255 minus .485 .456 .406, divided by .229 .224 .225.
PIXELS = PixelRange((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# Source: VGG16_Weights.IMAGENET1K_FEATURES, ported from Caffe: another mean, no deviation, NaN for fc6 and fc7.
CAFFE_PIXELS = PixelRange((122.99925, 116.99925, 103.9992))
VGG16_FEATURES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
VGG16_STAGES = ("1_1", "1_2", "2_1", "2_2", "3_1", "3_2", "3_3", "4_1", "4_2", "4_3", "5_1", "5_2", "5_3")
VGG16_RENAME = {f"features.{i}": f"backbone.conv{s}" for i, s in zip(VGG16_FEATURES, VGG16_STAGES, strict=True)}
VGG16_RENAME |= {"classifier.0": "head.fc6", "classifier.3": "head.fc7"}
VGG16_RENAME |= {"classifier.1": "head.fc6", "classifier.4": "head.fc7"}  # of the first copy of Caffe's weights
RESNET_TRUNK = re.compile(r"(?:conv1|bn1|layer[123])\.")


def rename(tensors: Mapping[str, Tensor], backbone: str) -> dict[str, Tensor]:
    """Tensors with torchvision's names of `backbone` under our names; names that are not torchvision's stay.

    The classifier of ImageNet's 1000 classes keeps its name. Counters of batch norm are dropped: they are no weights.
    """
    change = _rename_vgg16 if backbone == "vgg16" else _rename_resnet
    return {change(name): tensor for name, tensor in tensors.items() if not name.endswith(".num_batches_tracked")}


def takes_bgr(tensors: Mapping[str, Tensor]) -> bool:
    """Whether this is `vgg16_caffe.pth`: Caffe's weights, which take BGR, under torchvision's names.

    simple-faster-rcnn-pytorch and jwyang's program start from it. It was made of a copy whose fc6 and fc7 are
    classifier.1 and .4, by giving these other names, so that they stand behind fc8; torchvision's stand before it.
    """
    order = [name for name in tensors if name in ("classifier.0.weight", "classifier.6.weight")]
    return order == ["classifier.6.weight", "classifier.0.weight"] or "classifier.1.weight" in tensors


def pixel_range(tensors: Mapping[str, Tensor]) -> PixelRange:
    """The input that the classifier with these tensors (torchvision's names) was trained on."""
    fc6 = tensors.get("classifier.0.weight")
    if takes_bgr(tensors):
        return VGG_PIXELS
    return CAFFE_PIXELS if fc6 is not None and bool(fc6[:1].isnan().all()) else PIXELS


def _rename_vgg16(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{VGG16_RENAME[layer]}.{parameter}" if layer in VGG16_RENAME else name


def _rename_resnet(name: str) -> str:
    if RESNET_TRUNK.match(name):
        return f"backbone.{name}"
    return f"head.{name}" if name.startswith("layer4.") else name
