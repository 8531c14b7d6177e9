from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from rcnn.models.vgg import VGG16
from rcnn.weights import torchvision
from rcnn.weights.jwyang import PIXELS, RENAME, from_jwyang, recognises, roi_op_of
from rcnn.weights.open import read_weights
from rcnn.weights.pixels import PixelRange
from tests.parity.other_programs import JWYANG, SIMPLE, random_state


def test_definition_names() -> None:
    assert RENAME["RCNN_base.0"] == "backbone.conv1_1"
    assert RENAME["RCNN_base.28"] == "backbone.conv5_3"
    assert RENAME["RCNN_rpn.RPN_Conv"] == "rpn.conv"
    assert RENAME["RCNN_rpn.RPN_cls_score"] == "rpn.cls"
    assert RENAME["RCNN_rpn.RPN_bbox_pred"] == "rpn.box"
    assert "REID_feat_net.weight" in from_jwyang({"REID_feat_net.weight": torch.ones(1)}, "caffe")


def test_agreement_every_parameter_has_its_place() -> None:
    named = from_jwyang(random_state(JWYANG, 20, 8, 0), "caffe")
    with torch.device("meta"):
        trunk = {f"backbone.{name}" for name in VGG16().state_dict()}
    heads = ("rpn.conv", "rpn.cls", "rpn.box", "head.fc6", "head.fc7", "head.cls_score", "head.bbox_pred")
    assert named.keys() == trunk | {f"{name}.{kind}" for name in heads for kind in ("weight", "bias")}


def test_the_input_is_bgr_minus_caffes_mean() -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    rgb = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 255
    theirs = rgb.flip(1) - torch.tensor([102.9801, 115.9465, 122.7717], dtype=torch.float64).view(3, 1, 1)
    ours = rgb - torch.tensor(PIXELS["caffe"].mean, dtype=torch.float64).view(3, 1, 1)
    named = from_jwyang({"RCNN_base.0.weight": weight}, "caffe")
    torch.testing.assert_close(F.conv2d(ours, named["backbone.conv1_1.weight"]), F.conv2d(theirs, weight))
    assert torch.equal(from_jwyang({"RCNN_base.0.weight": weight}, "torchvision")["backbone.conv1_1.weight"], weight)


def test_a_class_agnostic_box_layer_serves_each_class() -> None:
    state = random_state(JWYANG, 3, 8, 0, box_rows=4)
    named = from_jwyang(state, "caffe")
    weight, bias = state["RCNN_bbox_pred.weight"], state["RCNN_bbox_pred.bias"]
    assert torch.equal(named["head.bbox_pred.weight"], torch.cat([weight] * 4))
    assert torch.equal(named["head.bbox_pred.bias"], torch.cat([bias] * 4))


@pytest.mark.parametrize(
    ("beside", "op"),
    [
        ({"pooling_mode": "pool"}, "pool"),
        ({"pooling_mode": "align"}, "align_legacy"),
        ({"pooling_mode": "crop"}, "crop"),
        ({}, ""),
    ],
)
def test_what_the_checkpoint_says_of_its_roi_operator(beside: dict[str, str], op: str) -> None:
    assert roi_op_of(beside) == op


def write(path: Path, **beside: object) -> Path:
    """A checkpoint as trainval_net.py saves it."""
    state = random_state(JWYANG, 2, 8, 0)
    optimizer = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": [{"lr": 0.001, "params": [0]}]}
    torch.save({"session": 1, "epoch": 7, "model": state, "optimizer": optimizer, **beside}, path)
    return path


def test_a_checkpoint_is_known_with_its_input_and_conventions(tmp_path: Path) -> None:
    path = write(tmp_path / "faster_rcnn_1_6_10021.pth", pooling_mode="pool", class_agnostic=False)
    tensors, source = read_weights(path, "vgg16")
    assert len(tensors) == 40
    assert source.pixels == PixelRange((122.7717, 115.9465, 102.9801))
    assert source.model_fields()["offset"] == 1
    assert source.told() == "\nconventions: boxes that include their last pixel, RoIPool, decoded one pixel beyond"
    assert read_weights(path, "vgg16", "torchvision")[1].pixels == torchvision.PIXELS


def test_a_checkpoint_without_a_pooling_mode_says_what_is_taken_for_granted(tmp_path: Path) -> None:
    source = read_weights(write(tmp_path / "a.pth"), "vgg16")[1]
    assert source.conventions["roi_op"] == "pool"
    assert "no pooling_mode" in source.told()


def test_its_roi_align_is_the_first_one(tmp_path: Path) -> None:
    source = read_weights(write(tmp_path / "a.pth", pooling_mode="align"), "vgg16")[1]
    assert source.model_fields()["roi_op"] == "align_legacy"
    assert "RoIAlign of the first kind" in source.told()
    assert "branch for PyTorch 1.0" in source.told()


def test_another_operator_serves_to_start_a_training_only(tmp_path: Path) -> None:
    tensors, source = read_weights(write(tmp_path / "a.pth", pooling_mode="crop"), "vgg16")
    assert len(tensors) == 40
    with pytest.raises(ValueError, match=r"a\.pth \(jwyang.*crop_and_resize"):
        source.model_fields()


def test_a_resnet_is_refused(tmp_path: Path) -> None:
    names = ("RCNN_base.0.weight", "RCNN_base.4.0.conv1.weight", "RCNN_rpn.RPN_Conv.weight", "RCNN_bbox_pred.weight")
    torch.save({"model": {name: torch.ones(1) for name in names}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: a ResNet with Caffe's strides.*only VGG16"):
        read_weights(tmp_path / "a.pth", "resnet101")


def test_others_are_not_recognised() -> None:
    assert recognises(random_state(JWYANG, 1, 4, 0))
    assert not recognises(random_state(SIMPLE, 1, 4, 0))


def test_a_file_of_megabytes_does_not_become_terabytes() -> None:
    layers = {"RCNN_cls_score.bias": torch.ones(10**6), "RCNN_bbox_pred.weight": torch.ones(4, 10**5)}
    with pytest.raises(ValueError, match="has 1000000 classes; at most 10000 are read"):
        from_jwyang(layers, "torchvision")


def test_a_pooling_mode_that_is_no_text_is_not_written_out() -> None:
    mode: list = []
    for _ in range(60):
        mode = [mode, mode]  # as text it would fill any disk
    with pytest.raises(ValueError, match="pooling_mode is a list, not a text"):
        roi_op_of({"pooling_mode": mode})
