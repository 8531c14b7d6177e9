"""Checkpoints of simple-faster-rcnn-pytorch (chenyuntc): VGG16, with ChainerCV's conventions.

Boxes are (y1, x1, y2, x2) and so are their deltas; the RPN's two scores stand side by side for each anchor.
Source: its model/faster_rcnn_vgg16.py, model/region_proposal_network.py, data/dataset.py and trainer.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rcnn.weights import torchvision
from rcnn.weights.pixels import PixelRange, take_rgb

# caffe: BGR minus 122.7717 115.9465 102.9801, in this order: it takes the mean of red from blue.
PIXELS = {"caffe": PixelRange((102.9801, 115.9465, 122.7717)), "torchvision": torchvision.PIXELS}
INPUT_KEYS = ("caffe_pretrain", "caffe_vgg")  # of its configuration: trained from Caffe's weights, on their input
X_BEFORE_Y = [1, 0, 3, 2]  # dy, dx, dh, dw -> dx, dy, dw, dh
RENAME = {
    torch_name.replace("features.", "extractor."): name
    for torch_name, name in torchvision.VGG16_RENAME.items()
    if torch_name.startswith("features.")
}
RENAME |= {"rpn.conv1": "rpn.conv", "rpn.score": "rpn.cls", "rpn.loc": "rpn.box"}
RENAME |= {"head.classifier.0": "head.fc6", "head.score": "head.cls_score", "head.cls_loc": "head.bbox_pred"}
RENAME |= {"head.classifier.2": "head.fc7", "head.classifier.3": "head.fc7"}  # 3: trained with dropout


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have its names."""
    return {"extractor.0.weight", "rpn.loc.weight", "head.cls_loc.weight"} <= tensors.keys()


def input_of(beside: Mapping[str, Any]) -> str:
    """What the checkpoint says of its input: caffe, torchvision or, if nothing, auto."""
    config = beside.get("config")
    said = [config[key] for key in INPUT_KEYS if key in config] if isinstance(config, Mapping) else []
    return "auto" if not said else "caffe" if any(said) else "torchvision"


def from_simple_faster_rcnn(tensors: Mapping[str, Tensor], pixels: str) -> dict[str, Tensor]:
    """Its tensors under our names and conventions; names that are not known stay as they are.

    Args:
        pixels: the input it was trained on, a key of PIXELS.

    Raises:
        ValueError: a layer whose rows are not two scores or four deltas for each anchor or class.
    """
    named = {_rename(name): tensor for name, tensor in tensors.items()}
    for layer, rearranged in (("rpn.cls", _pairs_apart), ("rpn.box", _x_first), ("head.bbox_pred", _x_first)):
        for name in (f"{layer}.weight", f"{layer}.bias"):
            if name in named:
                named[name] = rearranged(name, named[name])
    return take_rgb(named) if pixels == "caffe" else named


def _rename(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{RENAME[layer]}.{parameter}" if layer in RENAME else name


def _pairs_apart(name: str, tensor: Tensor) -> Tensor:
    """Rows (anchor, background or object) as (background or object, anchor)."""
    return _rows(name, tensor, 2).transpose(0, 1).flatten(0, 1)


def _x_first(name: str, tensor: Tensor) -> Tensor:
    return _rows(name, tensor, 4)[:, X_BEFORE_Y].flatten(0, 1)


def _rows(name: str, tensor: Tensor, size: int) -> Tensor:
    if tensor.dim() == 0 or len(tensor) % size:
        raise ValueError(f"{name} has the shape {tuple(tensor.shape)}; expected rows in groups of {size}")
    return tensor.unflatten(0, (-1, size))
