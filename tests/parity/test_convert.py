"""`rcnn convert`: mx-rcnn's checkpoints, by the command line, give the detections that MXNet gave."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from rcnn.cli import main
from tests.parity.golden import forward_shapes, he_params
from tests.parity.golden_detections import count_agreed, golden_detections
from tests.parity.old_checkpoints import Form, Header, in_form, write_params

RECIPES = {"vgg16": "vgg16_voc07", "resnet101": "r101_voc0712"}
ANNOTATION = """<annotation><size><width>{w}</width><height>{h}</height><depth>3</depth></size><object>
<name>{name}</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"""


def convert(shared: Path, folder: Path, network: str, form: Form, header: Header, recipe: str) -> Path:
    """A checkpoint of the golden random weights, converted."""
    arrays = in_form(he_params(shared, forward_shapes(shared, network), 7), form)
    source = write_params(folder / "e2e-0010.params", arrays, header)
    del arrays
    out = folder / "model.safetensors"
    assert main(["convert", str(source), "--out", str(out), "--recipe", recipe]) == 0
    source.unlink()
    return out


def demo(model: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> list[list[float]]:
    """What `rcnn demo` prints, as rows of label, score and box."""
    capsys.readouterr()
    words = ["demo", str(model), str(picture), "--json", "--threshold", "0.001", "--device", "cpu"]
    assert main([*words, "--out", str(model.parent / "demo")]) == 0
    found = json.loads(capsys.readouterr().out)["detections"]
    return [[entry["label"], entry["score"], *entry["box"]] for entry in found]


def assert_agrees(shared: Path, found: list[list[float]], network: str) -> None:
    """As many as MXNet found, and at least 99 of 100 one to one the same; equal scores go by position."""
    golden = golden_detections(np.load(shared / "golden" / f"{network}.npz"))
    height, width = cv2.imread(str(shared / "golden" / "coffee.png")).shape[:2]
    golden[:, 2:] = golden[:, 2:].clip(max=[width - 1, height - 1] * 2)  # MXNet's may end a fraction of a pixel outside
    assert len(found) == len(golden)
    agreed = count_agreed(np.array(found), golden)
    assert agreed >= 0.99 * len(golden), (agreed, len(golden))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "form", "header"),
    [
        ("vgg16", "v5", "legacy"),
        ("vgg16", "v6", "v2"),
        ("resnet101", "v5", "v2"),
        ("resnet101", "v6", "legacy"),
    ],
)
def test_a_checkpoint_of_mx_rcnn_detects_as_it_did(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], network: str, form: Form, header: Header
) -> None:
    model = convert(shared, tmp_path, network, form, header, RECIPES[network])
    assert_agrees(shared, demo(model, shared / "golden" / "coffee.png", capsys), network)
    model.unlink()


@pytest.mark.slow
def test_a_recipe_file_serves_a_network_without_a_recipe_of_its_own(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "r50.py"
    recipe.write_text(
        "from dataclasses import replace\n"
        "from rcnn.recipes.r101_voc0712 import RECIPE as BASE\n"
        "RECIPE = replace(BASE, model=replace(BASE.model, backbone='resnet50_v2'))\n"
    )
    model = convert(shared, tmp_path, "resnet50", "v5", "legacy", str(recipe))
    assert_agrees(shared, demo(model, shared / "golden" / "coffee.png", capsys), "resnet50")
    assert_agrees(shared, run_test(shared, model, tmp_path), "resnet50")
    model.unlink()


def run_test(shared: Path, model: Path, folder: Path) -> list[list[float]]:
    """`rcnn test` on a VOC-style folder of one picture; its detections.json as rows like those of `demo`."""
    root = folder / "voc"
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    shutil.copy(shared / "golden" / "coffee.png", root / "JPEGImages" / "coffee.png")
    (root / "Annotations" / "coffee.xml").write_text(ANNOTATION.format(w=600, h=400, name="bottle"))
    (root / "ImageSets" / "Main" / "test.txt").write_text("coffee\n")
    words = ["--data.root", str(root), "--data.test", "test", "--data.workers", "0", "--device", "cpu"]
    assert main(["test", str(model), *words, "--out", str(folder / "test")]) == 0
    document = json.loads((folder / "test" / "detections.json").read_text())
    assert [image["file_name"] for image in document["images"]] == ["coffee.png"]
    found = []
    for entry in document["detections"]:
        x, y, w, h = entry["bbox"]
        # inclusive boxes: the last pixel belongs to the width
        found.append([entry["category_id"], entry["score"], x, y, x + w - 1, y + h - 1])
    return found
