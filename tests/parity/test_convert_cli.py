"""`rcnn convert` of other programs' checkpoints and of backbones, and what it refuses."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import pytest
import torch

import rcnn
from rcnn.build import build_model, load_pretrained, read_model_header
from rcnn.cli import main
from rcnn.config import Eval
from rcnn.models.heads import Stage4HeadV2
from rcnn.models.resnet import ResNetC4
from rcnn.models.resnet_v2 import ResNetV2C4
from rcnn.models.vgg import VGG16
from rcnn.recipes import r101_voc0712, vgg16_voc07
from rcnn.weights.mxnet import RENAME_BACK
from rcnn.weights.safetensors import load
from tests.parity.golden import one_to_one
from tests.parity.old_checkpoints import write_params
from tests.parity.other_programs import JWYANG, SIMPLE, Found, jwyang_detect, random_state, simple_detect

HIDDEN = 16  # width of the heads, which holds nearly all of VGG16's weights
SIZE = (80, 112)  # of the picture, which is doubled
ARRAYS = dict[str, np.ndarray]
Input = Literal["caffe", "torchvision"]


def small_recipe(folder: Path, base: str, **changes: object) -> str:
    """A recipe file: `base` with a narrow head and small pictures."""
    path = folder / f"{base}_small.py"
    path.write_text(
        "from dataclasses import replace\n"
        f"from rcnn.recipes.{base} import RECIPE as BASE\n"
        f"model = replace(BASE.model, head_hidden={HIDDEN})\n"
        "data = replace(BASE.data, short_side=160)\n"
        f"RECIPE = replace(BASE, model=model, data=data, eval=replace(BASE.eval, **{changes!r}))\n"
    )
    return str(path)


def convert(source: Path, recipe: str, *words: str) -> Path:
    out = source.with_suffix(".safetensors")
    assert main(["convert", str(source), "--out", str(out), "--recipe", recipe, *words]) == 0
    return out


# --- other programs -------------------------------------------------------------------------------------------------


def picture() -> np.ndarray:
    """RGB of smooth spots."""
    spots = np.random.default_rng(0).integers(0, 256, (10, 14, 3), dtype=np.uint8)
    return cv2.resize(spots, SIZE[::-1], interpolation=cv2.INTER_CUBIC)


def as_trained(program: str, pixels: Input) -> np.ndarray:
    """The doubled picture as the program feeds its network: (3, H, W)."""
    doubled = cv2.resize(picture(), None, fx=2.0, fy=2.0, interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1) / 255
    if pixels == "torchvision":
        mean, std = (np.array(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        return (doubled - mean) / std
    mean = [122.7717, 115.9465, 102.9801] if program == "simple" else [102.9801, 115.9465, 122.7717]
    return doubled[::-1] * 255 - np.array(mean)[:, None, None]


def assert_same(result: Any, found: list[Found], *, offset: float) -> None:
    """Our detections are theirs; boxes of ours end on the picture, theirs of the inclusive kind half a pixel beyond."""
    assert len(result.labels) == len(found) > 50
    limit = np.array([SIZE[1], SIZE[0]] * 2) - offset
    agreed = 0
    for label in {entry.label for entry in found}:
        ours = result.labels == label
        theirs = [entry for entry in found if entry.label == label]
        boxes = np.minimum([entry.box for entry in theirs], limit)
        match = one_to_one(result.boxes[ours], boxes, within=0.01)
        scores = np.append(result.scores[ours], np.inf)[match]
        agreed += int((np.abs(scores - [entry.score for entry in theirs]) < 1e-4).sum())
    assert agreed >= 0.99 * len(found)


@pytest.mark.parametrize(("pixels", "zipped"), [("caffe", False), ("torchvision", True)])
def test_a_checkpoint_of_simple_faster_rcnn_detects_as_it_did(tmp_path: Path, pixels: Input, zipped: bool) -> None:
    state = random_state(SIMPLE, 20, HIDDEN, seed=3)
    if pixels == "caffe":
        state["extractor.0.weight"] /= 60
    checkpoint = {
        "model": state,
        "config": {"caffe_pretrain": pixels == "caffe", "lr": 0.001},
        "other_info": {"best_map": np.float64(0.7)},
        "vis_info": {"env": "faster-rcnn", "index": {}},
    }
    torch.save(checkpoint, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    model = convert(tmp_path / "a.pth", small_recipe(tmp_path, "vgg16_voc07_simple"))
    result = rcnn.load(model, device="cpu")(picture())
    assert_same(result, simple_detect(state, as_trained("simple", pixels), SIZE, least_score=0.05), offset=0)
    assert set(result.names) <= set(rcnn.load(model, device="cpu").classes)


@pytest.mark.parametrize(
    ("pixels", "mode", "agnostic"),
    [("caffe", "pool", True), ("torchvision", "pool", False), ("caffe", "align", False)],
)
def test_a_checkpoint_of_jwyang_detects_as_it_did(tmp_path: Path, pixels: Input, mode: str, agnostic: bool) -> None:
    state = random_state(JWYANG, 20, HIDDEN, seed=3, box_rows=4 if agnostic else None)
    if pixels == "caffe":
        state["RCNN_base.0.weight"] /= 60
    checkpoint = {"session": 1, "epoch": 7, "model": state, "pooling_mode": mode, "class_agnostic": agnostic}
    torch.save(checkpoint, tmp_path / "a.pth")
    recipe = small_recipe(tmp_path, "vgg16_voc07_jwyang", score=0.05, max_detections=6000)
    model = convert(tmp_path / "a.pth", recipe, *(["--pixels", pixels] if pixels != "caffe" else []))
    result = rcnn.load(model, device="cpu")(picture())
    image = as_trained("jwyang", pixels)
    theirs = jwyang_detect(state, image, SIZE, least_score=0.05, pooling_mode=mode)
    assert_same(result, theirs, offset=1)


def test_the_conventions_are_the_checkpoints_whatever_the_recipe_has(tmp_path: Path) -> None:
    checkpoint = {"model": random_state(SIMPLE, 3, HIDDEN, seed=0), "config": {"caffe_pretrain": False}}
    torch.save(checkpoint, tmp_path / "a.pth")
    model = convert(tmp_path / "a.pth", small_recipe(tmp_path, "vgg16_voc07"), "--classes", "a", "b", "c")
    recipe, classes = read_model_header(model)
    assert (recipe.model.offset, recipe.model.roi_op, classes) == (0.0, "pool", ("a", "b", "c"))
    assert recipe.model.pixel_std == (58.395, 57.12, 57.375)
    assert recipe.data.canvas == "exact"


def test_crop_and_resize_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": random_state(JWYANG, 20, HIDDEN, seed=0), "pooling_mode": "crop"}, tmp_path / "a.pth")
    recipe = small_recipe(tmp_path, "vgg16_voc07_jwyang")
    assert main(["convert", str(tmp_path / "a.pth"), "--out", str(tmp_path / "x.safetensors"), "--recipe", recipe]) == 2
    assert "crop_and_resize" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


def test_eighty_classes_are_those_of_coco(tmp_path: Path) -> None:
    state = random_state(JWYANG, 80, HIDDEN, seed=0)
    for name, rows in (("RCNN_rpn.RPN_cls_score", 24), ("RCNN_rpn.RPN_bbox_pred", 48)):  # twelve anchors
        state |= {f"{name}.weight": torch.zeros(rows, 512, 1, 1), f"{name}.bias": torch.zeros(rows)}
    torch.save({"model": state, "pooling_mode": "pool"}, tmp_path / "a.pth")
    model = convert(tmp_path / "a.pth", small_recipe(tmp_path, "vgg16_coco_jwyang"))
    assert read_model_header(model)[1][:2] == ("person", "bicycle")


# --- ImageNet's weights for mx-rcnn ---------------------------------------------------------------------------------


def imagenet_vgg16() -> ARRAYS:
    """As in mx-rcnn's vgg16-0000.params, but for the width of fc6 and fc7: a classifier, no RPN."""
    shapes = {RENAME_BACK[f"backbone.{name}"]: tuple(x.shape) for name, x in VGG16().state_dict().items()}
    shapes |= {"fc6_weight": (HIDDEN, 25088), "fc7_weight": (HIDDEN, HIDDEN), "fc8_weight": (1000, HIDDEN)}
    shapes |= {"fc6_bias": (HIDDEN,), "fc7_bias": (HIDDEN,), "fc8_bias": (1000,)}
    return random_arrays(shapes)


def imagenet_resnet() -> ARRAYS:
    """As in resnet-50-0000.params: the trunk, stage 4, bn1 and a classifier."""
    parts = {"backbone": ResNetV2C4(50).state_dict(), "head": Stage4HeadV2(50, 1).state_dict()}
    names = {f"{part}.{name}": tuple(x.shape) for part, state in parts.items() for name, x in state.items()}
    shapes = {RENAME_BACK[n]: s for n, s in names.items() if n.split(".")[1] not in ("cls_score", "bbox_pred")}
    return random_arrays(shapes | {"fc1_weight": (1000, 2048), "fc1_bias": (1000,)})


def random_arrays(shapes: dict[str, tuple[int, ...]]) -> ARRAYS:
    rng = np.random.default_rng(0)
    return {name: rng.random(shape, np.float32) + np.float32(0.1) for name, shape in shapes.items()}


def written(folder: Path, name: str, arrays: ARRAYS) -> Path:
    kinds = {key: "aux" if "_moving_" in key else "arg" for key in arrays}
    return write_params(folder / name, {f"{kinds[key]}:{key}": array for key, array in arrays.items()}, "legacy")


def test_vgg16_of_imagenet_starts_a_training(tmp_path: Path) -> None:
    arrays = imagenet_vgg16()
    path = written(tmp_path, "vgg16-0000.params", arrays)
    model = replace(vgg16_voc07.RECIPE.model, head_hidden=HIDDEN, pretrained=str(path))
    detector = build_model(model, Eval(), 20)
    report = load_pretrained(detector, model, ("x",) * 20)
    assert {line.name.split(".")[0] for line in report.kept} == {"backbone", "head"}
    assert len(report.kept) == 26 + 4
    assert {line.name.rpartition(".")[0] for line in report.initialised} == {
        "rpn.conv", "rpn.cls", "rpn.box", "head.cls_score", "head.bbox_pred"
    }  # fmt: skip
    assert {line.name: line.shape for line in report.skipped} == {"fc8_weight": (1000, HIDDEN), "fc8_bias": (1000,)}
    state = detector.state_dict()
    assert torch.equal(state["backbone.conv1_1.weight"], torch.from_numpy(arrays["conv1_1_weight"]))  # the same range
    assert torch.equal(state["head.fc6.weight"], torch.from_numpy(arrays["fc6_weight"]))


def test_weights_of_a_backbone_are_matched_to_the_range_of_the_recipe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = imagenet_vgg16()
    path = written(tmp_path, "vgg16-0000.params", arrays)
    same = convert(path, small_recipe(tmp_path, "vgg16_voc07"))
    told = capsys.readouterr().out
    assert "30 kept, 10 initialised, 2 skipped" in told
    assert told.endswith("input: RGB of 0 to 255 minus 123.68 116.779 103.939\n")
    tensors, header = load(same)
    assert header["format"] == "rcnn-backbone-1"
    assert torch.equal(tensors["backbone.conv1_1.weight"], torch.from_numpy(arrays["conv1_1_weight"]))
    other = load(convert(path, small_recipe(tmp_path, "vgg16_voc07_simple")))[0]
    assert "divided by 58.395 57.12 57.375" in capsys.readouterr().out
    ratio = (other["backbone.conv1_1.weight"] / tensors["backbone.conv1_1.weight"]).mean((0, 2, 3))
    torch.testing.assert_close(ratio, torch.tensor([58.395, 57.12, 57.375]))


def test_a_pre_activation_resnet_of_imagenet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = imagenet_resnet()
    path = written(tmp_path, "resnet-50-0000.params", arrays)
    model = replace(r101_voc0712.RECIPE.model, backbone="resnet50_v2", pretrained=str(path))
    report = load_pretrained(build_model(model, Eval(), 20), model, ("x",) * 20)
    assert {line.name.split(".")[0] for line in report.initialised} == {"rpn", "head"}
    assert {line.name for line in report.initialised if line.name.startswith("head")} == {
        f"head.{layer}.{kind}" for layer in ("cls_score", "bbox_pred") for kind in ("weight", "bias")
    }
    assert {line.name for line in report.skipped} == {"fc1_weight", "fc1_bias"}
    recipe = tmp_path / "r50.py"
    recipe.write_text(
        "from dataclasses import replace\nfrom rcnn.recipes.r101_voc0712 import RECIPE as BASE\n"
        "RECIPE = replace(BASE, model=replace(BASE.model, backbone='resnet50_v2'))\n"
    )
    tensors, _ = load(convert(path, str(recipe)))
    assert capsys.readouterr().out.endswith("input: RGB of 0 to 255 minus 0 0 0\n")
    assert tensors["backbone.bn_data.weight"].tolist() == [1, 1, 1]
    assert torch.equal(tensors["head.bn1.weight"], torch.from_numpy(arrays["bn1_gamma"]))
    with pytest.raises(ValueError, match=r"resnet-50-0000\.params .*holds resnet50_v2 .*wants resnet101_v2"):
        load_pretrained(build_model(model, Eval(), 20), replace(model, backbone="resnet101_v2"), ("x",) * 20)


def test_a_fast_rcnn_of_mx_rcnn_has_no_rpn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = {name: array for name, array in imagenet_vgg16().items() if not name.startswith("fc8")}
    rows = {"cls_score": 21, "bbox_pred": 84}
    arrays |= {f"{name}_weight": np.ones((count, HIDDEN), np.float32) for name, count in rows.items()}
    arrays |= {f"{name}_bias": np.ones(count, np.float32) for name, count in rows.items()}
    arrays |= {f"{name}_test": 2 * arrays[name] for name in ("bbox_pred_weight", "bbox_pred_bias")}
    path = written(tmp_path, "rcnn-0008.params", arrays)
    tensors, _ = load(convert(path, small_recipe(tmp_path, "vgg16_voc07_fast")))
    assert tensors["head.bbox_pred.bias"][:4].tolist() == [20, 20, 10, 10]  # deltas by the deviations of the recipe
    assert not any(name.startswith("rpn.") for name in tensors)
    capsys.readouterr()
    out = str(tmp_path / "x.safetensors")
    assert main(["convert", str(path), "--out", out, "--recipe", small_recipe(tmp_path, "vgg16_voc07")]) == 2
    assert "is no whole detector of this recipe" in capsys.readouterr().err


# --- torchvision's, and what is refused -----------------------------------------------------------------------------


def test_a_backbone_becomes_weights_to_start_from(tmp_path: Path) -> None:
    backbone = ResNetC4(18)
    torch.save(backbone.state_dict(), tmp_path / "resnet18.pth")
    tensors, header = load(convert(tmp_path / "resnet18.pth", "r18_custom"))
    assert header["format"] == "rcnn-backbone-1"
    assert set(tensors) == {f"backbone.{name}" for name in backbone.state_dict()}
    assert torch.equal(tensors["backbone.layer3.0.conv1.weight"], backbone.layer3[0].conv1.weight)


def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "no.params"), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "no.params" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "no.params"), "--out", str(tmp_path / "x.pth")]) == 2
    assert ".safetensors" in capsys.readouterr().err
    state = {"backbone.body.conv1.weight": torch.ones(1), "roi_heads.box_head.fc6.weight": torch.ones(1)}
    torch.save({"model_state_dict": state}, tmp_path / "best.pth")
    assert main(["convert", str(tmp_path / "best.pth"), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "a detector of torchvision" in capsys.readouterr().err
