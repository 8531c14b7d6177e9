from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.models.vgg import VGG16
from rcnn.weights import torchvision
from rcnn.weights.open import read_weights
from rcnn.weights.pixels import PixelRange
from rcnn.weights.simple_faster_rcnn import PIXELS, RENAME, from_simple_faster_rcnn, input_of, recognises
from tests.parity.other_programs import SIMPLE, random_state


def small(**changes: tuple[int, ...]) -> dict[str, Tensor]:
    """The layers around the trunk, of few channels, each row told by its number."""
    rows = {"extractor.0": 4, "rpn.conv1": 4, "rpn.score": 6, "rpn.loc": 12, "head.score": 3, "head.cls_loc": 12}
    shapes = {f"{name}.weight": (count, 3, 1, 1) for name, count in rows.items()}
    shapes |= {f"{name}.bias": (count,) for name, count in rows.items()} | changes
    return {
        name: torch.arange(shape[0]).float().view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
        for name, shape in shapes.items()
    }


def test_definition_rows_of_the_rpn_and_of_the_box_layer() -> None:
    named = from_simple_faster_rcnn(small(), "torchvision")
    assert named["rpn.cls.bias"].tolist() == [0, 2, 4, 1, 3, 5]  # background of each anchor, then object
    assert named["rpn.box.bias"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert named["head.bbox_pred.bias"].tolist() == [1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]
    assert named["head.cls_score.bias"].tolist() == [0, 1, 2]
    for name in ("rpn.cls", "rpn.box", "head.bbox_pred"):
        assert torch.equal(named[f"{name}.weight"][:, 0, 0, 0], named[f"{name}.bias"])


def test_definition_names() -> None:
    assert RENAME["extractor.0"] == "backbone.conv1_1"
    assert RENAME["extractor.28"] == "backbone.conv5_3"
    assert RENAME["head.classifier.2"] == RENAME["head.classifier.3"] == "head.fc7"  # without and with dropout
    assert "other.weight" in from_simple_faster_rcnn({"other.weight": torch.ones(1)}, "caffe")


def test_agreement_every_parameter_has_its_place() -> None:
    named = from_simple_faster_rcnn(random_state(SIMPLE, 20, 8, 0), "caffe")
    with torch.device("meta"):
        trunk = {f"backbone.{name}" for name in VGG16().state_dict()}
    heads = ("rpn.conv", "rpn.cls", "rpn.box", "head.fc6", "head.fc7", "head.cls_score", "head.bbox_pred")
    assert named.keys() == trunk | {f"{name}.{kind}" for name in heads for kind in ("weight", "bias")}


def test_the_input_of_caffe_is_bgr_minus_a_mean_in_its_own_order() -> None:
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64)
    rgb = torch.rand(1, 3, 8, 8, dtype=torch.float64) * 255
    theirs = rgb.flip(1) - torch.tensor([122.7717, 115.9465, 102.9801], dtype=torch.float64).view(3, 1, 1)
    ours = rgb - torch.tensor(PIXELS["caffe"].mean, dtype=torch.float64).view(3, 1, 1)
    named = from_simple_faster_rcnn({"extractor.0.weight": weight}, "caffe")
    torch.testing.assert_close(F.conv2d(ours, named["backbone.conv1_1.weight"]), F.conv2d(theirs, weight))
    named = from_simple_faster_rcnn({"extractor.0.weight": weight}, "torchvision")
    assert torch.equal(named["backbone.conv1_1.weight"], weight)


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        ({"config": {"caffe_pretrain": True}}, "caffe"),
        ({"config": {"caffe_pretrain": False, "lr": 1}}, "torchvision"),
        ({"config": {"caffe_vgg": True}}, "caffe"),  # of a fork
        ({"config": {}}, "auto"),
        ({"config": 3}, "auto"),
        ({}, "auto"),
    ],
)
def test_what_the_checkpoint_says_of_its_input(beside: dict[str, Any], said: str) -> None:
    assert input_of(beside) == said


def test_odd_rows_are_refused_with_the_file(tmp_path: Path) -> None:
    torch.save({"model": small(**{"rpn.loc.bias": (13,)}), "config": {"caffe_pretrain": True}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: rpn\.box\.bias has the shape \(13,\); expected rows in groups of 4"):
        read_weights(tmp_path / "a.pth", "vgg16")


def test_a_checkpoint_is_known_with_its_input_and_conventions(tmp_path: Path) -> None:
    checkpoint = {
        "model": random_state(SIMPLE, 2, 8, 0),
        "config": {"caffe_pretrain": True, "use_drop": False, "env": "x"},
        "other_info": {"best_map": np.float64(0.7)},
        "vis_info": {"index": {}, "log_text": ""},
    }
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    tensors, source = read_weights(tmp_path / "a.pth", "vgg16")
    assert source.kind == "simple-faster-rcnn-pytorch"
    assert source.pixels == PixelRange((102.9801, 115.9465, 122.7717))
    assert source.model_fields()["offset"] == 0
    assert source.keeps_all
    assert len(tensors) == 40
    with pytest.raises(ValueError, match=r"a\.pth \(simple.*holds vgg16 .*wants resnet50.*--model\.backbone vgg16"):
        read_weights(tmp_path / "a.pth", "resnet50")


def test_a_bare_state_dict_must_be_told_its_input(tmp_path: Path) -> None:
    state = random_state(SIMPLE, 2, 8, 0)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: .*does not say.*--pixels caffe or --pixels torchvision"):
        read_weights(tmp_path / "a.pth", "vgg16")
    for pixels, swapped in (("caffe", True), ("torchvision", False)):
        tensors, source = read_weights(tmp_path / "a.pth", "vgg16", pixels)
        assert source.pixels == PIXELS[pixels]
        expected = state["extractor.0.weight"]
        assert torch.equal(tensors["backbone.conv1_1.weight"], expected.flip(1) if swapped else expected)


def test_others_are_not_recognised() -> None:
    assert recognises(random_state(SIMPLE, 1, 4, 0))
    assert not recognises(nn.Conv2d(1, 1, 1).state_dict())
    assert PIXELS["torchvision"] == torchvision.PIXELS
