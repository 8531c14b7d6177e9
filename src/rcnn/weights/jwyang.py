"""Checkpoints of faster-rcnn.pytorch (jwyang): VGG16, with py-faster-rcnn's conventions.

Source: its lib/model/faster_rcnn/vgg16.py, lib/model/rpn/rpn.py, lib/model/utils/config.py and trainval_net.py.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rcnn.weights import caffe, torchvision
from rcnn.weights.pixels import take_rgb

PIXELS = {"caffe": caffe.DETECTOR_PIXELS, "torchvision": torchvision.PIXELS}  # it is made for Caffe's
MOST_CLASSES = 10_000
ROI_OPS = {"pool": "pool", "align": "align_legacy", "crop": "crop"}  # its POOLING_MODE -> ours, or none of ours
RENAME = {
    torch_name.replace("features.", "RCNN_base."): name
    for torch_name, name in torchvision.VGG16_RENAME.items()
    if torch_name.startswith("features.")
}
RENAME |= {f"RCNN_rpn.RPN_{theirs}": f"rpn.{ours}" for theirs, ours in (("Conv", "conv"), ("cls_score", "cls"))}
RENAME |= {"RCNN_rpn.RPN_bbox_pred": "rpn.box", "RCNN_top.0": "head.fc6", "RCNN_top.3": "head.fc7"}
RENAME |= {"RCNN_cls_score": "head.cls_score", "RCNN_bbox_pred": "head.bbox_pred"}


def recognises(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors have its names."""
    return {"RCNN_base.0.weight", "RCNN_rpn.RPN_Conv.weight", "RCNN_bbox_pred.weight"} <= tensors.keys()


def roi_op_of(beside: Mapping[str, Any]) -> str:
    """The RoI operator that the checkpoint says it was trained with; empty if it says nothing."""
    mode = beside.get("pooling_mode", "")
    if not isinstance(mode, str):
        raise ValueError(f"pooling_mode is a {type(mode).__name__}, not a text")
    return ROI_OPS.get(mode, mode)


def notes_on(roi_op: str) -> tuple[str, ...]:
    """What is taken for granted of the operator that `roi_op_of` found."""
    if roi_op == "align_legacy":
        return ("pooling_mode align: that of its branch for PyTorch 1.0; the one before was another operator",)
    return () if roi_op else ("the file has no pooling_mode: RoIPool is taken for it",)


def from_jwyang(tensors: Mapping[str, Tensor], pixels: str) -> dict[str, Tensor]:
    """Its tensors under our names and conventions; names that are not known stay as they are.

    The boxes of a class-agnostic network are the same for each class, which repeating their rows gives.

    Args:
        pixels: the input it was trained on, a key of PIXELS.

    Raises:
        ValueError: a ResNet, whose strides are Caffe's and not ours.
    """
    if "RCNN_base.4.0.conv1.weight" in tensors:
        raise ValueError(
            "a ResNet with Caffe's strides (in the first 1 x 1 convolution of a stage), which is not read yet; of "
            "jwyang's program only VGG16 is"
        )
    named = {_rename(name): tensor for name, tensor in tensors.items()}
    classes = named["head.cls_score.bias"].numel() if "head.cls_score.bias" in named else 1
    for name in ("head.bbox_pred.weight", "head.bbox_pred.bias"):
        if name in named and named[name].dim() and len(named[name]) == 4 < 4 * classes:
            if classes > MOST_CLASSES:  # a file of megabytes would ask for terabytes
                raise ValueError(f"head.cls_score.bias has {classes} classes; at most {MOST_CLASSES} are read")
            named[name] = named[name].repeat(classes, *[1] * (named[name].dim() - 1))
    return take_rgb(named) if pixels == "caffe" else named


def _rename(name: str) -> str:
    layer, _, parameter = name.rpartition(".")
    return f"{RENAME[layer]}.{parameter}" if layer in RENAME else name
