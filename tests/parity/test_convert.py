"""`rcnn convert`: an mx-rcnn checkpoint, by the command line, gives the detections that MXNet gave."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

import rcnn
from rcnn.cli import main
from rcnn.models.resnet import ResNetC4
from rcnn.weights.safetensors import load
from tests.parity.golden import forward_shapes, he_params, one_to_one


def write_params(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A .params file with the header of 2016, as mx-rcnn's own models have."""
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
        for array in arrays.values():
            file.write(struct.pack(f"<I{array.ndim}I", array.ndim, *array.shape) + struct.pack("<iii", 1, 0, 0))
            file.write(array.astype("<f4").tobytes())
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name)) + name.encode())


@pytest.mark.slow
def test_a_checkpoint_of_mx_rcnn_detects_as_it_did(shared: Path, tmp_path: Path) -> None:
    arrays = he_params(shared, forward_shapes(shared, "resnet50"), 7)
    kinds = {name: "aux" if "_moving_" in name else "arg" for name in arrays}
    write_params(tmp_path / "e2e-0010.params", {f"{kinds[name]}:{name}": array for name, array in arrays.items()})
    recipe = tmp_path / "r50.py"
    recipe.write_text(
        "from dataclasses import replace\n"
        "from rcnn.config import Eval\n"
        "from rcnn.recipes.r101_voc0712 import RECIPE as BASE\n"
        "model = replace(BASE.model, backbone='resnet50_v2')\n"
        "RECIPE = replace(BASE, model=model, eval=Eval(max_detections=6000))\n"
    )
    out = tmp_path / "model.safetensors"
    assert main(["convert", str(tmp_path / "e2e-0010.params"), "--out", str(out), "--recipe", str(recipe)]) == 0
    result = rcnn.load(out, device="cpu")(shared / "golden" / "coffee.png")
    theirs = np.load(shared / "golden" / "resnet50.npz")["detections"]
    height, width = cv2.imread(str(shared / "golden" / "coffee.png")).shape[:2]
    limit = [width - 1, height - 1]  # MXNet's boxes may end a fraction of a pixel outside of the picture, ours do not
    theirs[:, 2:] = np.minimum(theirs[:, 2:], limit + limit)
    agreed = 0
    for label in np.unique(theirs[:, 0]):
        ours, mine = result.labels == label, theirs[theirs[:, 0] == label]
        match = one_to_one(result.boxes[ours], mine[:, 2:], within=0.1)
        found = match >= 0
        agreed += int((np.abs(result.scores[ours][match[found]] - mine[found, 1]) < 1e-3).sum())
    assert agreed >= 0.99 * len(theirs)


def test_a_backbone_becomes_weights_to_start_from(tmp_path: Path) -> None:
    backbone = ResNetC4(18)
    torch.save(backbone.state_dict(), tmp_path / "resnet18.pth")
    out = tmp_path / "resnet18.safetensors"
    assert main(["convert", str(tmp_path / "resnet18.pth"), "--out", str(out), "--recipe", "r18_custom"]) == 0
    tensors, header = load(out)
    assert header["format"] == "rcnn-backbone-1"
    assert set(tensors) == {f"backbone.{name}" for name in backbone.state_dict()}
    assert torch.equal(tensors["backbone.layer3.0.conv1.weight"], backbone.layer3[0].conv1.weight)


def test_what_cannot_be_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "no.params"), "--out", str(tmp_path / "x.safetensors")]) == 2
    assert "no.params" in capsys.readouterr().err
    assert main(["convert", str(tmp_path / "no.params"), "--out", str(tmp_path / "x.pth")]) == 2
    assert ".safetensors" in capsys.readouterr().err
