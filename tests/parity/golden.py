"""Reading the golden files: values that MXNet 1.9.1 computed running mx-rcnn."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch

from rcnn.build import build_model
from rcnn.config import Eval, Model
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.recipes import r101_voc0712, vgg16_voc07
from rcnn.weights.mxnet import from_mxnet
from rcnn.weights.transfer import load_into

MODELS: dict[str, Model] = {
    "vgg16": vgg16_voc07.RECIPE.model,
    "resnet50": Model(**{**vars(r101_voc0712.RECIPE.model), "backbone": "resnet50_v2"}),
    "resnet101": r101_voc0712.RECIPE.model,
}


def he_params(shared: Path, shapes: dict[str, list[int]], seed: int) -> dict[str, np.ndarray]:
    """The random weights that the golden files were made with."""
    spec = importlib.util.spec_from_file_location("golden_weights", shared / "golden" / "weights.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.he_params(shapes, seed)


def golden_model(shared: Path, network: str, shapes: dict[str, list[int]]) -> FasterRCNN:
    """The network with the golden random weights (seed 7), everything of it used."""
    model = build_model(MODELS[network], Eval(max_detections=6000), num_classes=20)
    report = load_into(model, from_mxnet(he_params(shared, shapes, 7)), source=network)
    assert not report.initialised and not report.skipped, report.format()
    return model.to(memory_format=torch.channels_last).eval()


def forward_shapes(shared: Path, network: str) -> dict[str, list[int]]:
    """Shapes of all arrays of the network by MXNet's names."""
    shapes = json.loads((shared / "golden" / f"{network}_shapes.json").read_text())
    return shapes["arguments"] | shapes["auxiliary"]


def one_to_one(ours: np.ndarray, theirs: np.ndarray, *, within: float) -> np.ndarray:
    """For each box of theirs the index of ours that has all corners within so many pixels, or -1; none used twice."""
    match = np.full(len(theirs), -1)
    if not len(ours):
        return match
    far = np.abs(theirs[:, None] - ours[None]).max(-1)
    free = np.ones(len(ours), bool)
    for row in np.argsort(far.min(1)):
        column = int(np.where(free, far[row], np.inf).argmin())
        if free[column] and far[row, column] <= within:
            match[row], free[column] = column, False
    return match
