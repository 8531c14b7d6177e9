"""One training step of ResNet-50 against MXNet's: the four losses and the gradient of every parameter."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rcnn.data.transforms import resize_to_canvas
from rcnn.models.norm import FrozenBatchNorm
from rcnn.structures import AnchorTargets, Canvas, RoiTargets
from rcnn.training.losses import head_terms, rpn_terms
from rcnn.weights.mxnet import RENAME
from tests.parity.golden import golden_model, he_params

BATCH_ANCHORS = 256


@pytest.mark.slow
def test_training_step(shared: Path) -> None:
    golden = np.load(shared / "golden" / "train_step_resnet50.npz")
    facts = json.loads((shared / "golden" / "train_step_resnet50.json").read_text())
    model = golden_model(shared, "resnet50", facts["shapes"]).train()
    for module in model.modules():  # MXNet's figures hold gradients of frozen parameters too
        if isinstance(module, FrozenBatchNorm):
            module.requires_grad_(True)
    model.requires_grad_(True)

    losses = _losses(model, shared, golden)
    theirs = {"rpn_cls": "loss_rpn_cls", "rpn_box": "loss_rpn_bbox", "head_cls": "loss_cls", "head_box": "loss_bbox"}
    for ours, name in theirs.items():
        np.testing.assert_allclose(losses[ours].item(), golden[name], rtol=1e-4, err_msg=name)

    sum(losses[name] for name in theirs).backward()
    gradients = next(value for key, value in facts.items() if key.startswith("gradients"))
    directions = he_params(shared, {name: facts["shapes"][name] for name in gradients}, 99)
    parameters = dict(model.named_parameters())
    checked = 0
    for name, (norm, dot) in gradients.items():
        gradient = parameters[RENAME[name]].grad
        ours = np.zeros(1) if gradient is None else gradient.double().numpy().ravel()
        tolerance = 1e-3 * norm + 1e-12
        assert abs(np.linalg.norm(ours) - norm) <= tolerance, name
        scale = np.linalg.norm(directions[name])
        assert abs(float((ours * directions[name].ravel()).sum()) - dot) <= tolerance * scale, name
        checked += 1
    assert checked == len(gradients) == 165


def _losses(model, shared: Path, golden) -> dict[str, torch.Tensor]:
    image = np.ascontiguousarray(cv2.imread(str(shared / "golden" / "coffee.png"))[:, :, ::-1])
    placed, size, _, _ = resize_to_canvas(image, np.zeros((0, 4), np.float32), Canvas(600, 900), 600, 1000)
    image_size = torch.tensor([size])
    features = model.features(torch.from_numpy(placed)[None], image_size)
    rpn = model.rpn(features, image_size)
    labels = torch.from_numpy(golden["rpn_labels"])[None]
    deltas = torch.zeros(1, len(rpn.anchors), 4)
    deltas[0, torch.from_numpy(golden["rpn_fg"])] = torch.from_numpy(golden["rpn_fg_targets"])
    losses = rpn_terms(rpn, AnchorTargets(labels == 1, labels >= 0, deltas), count=BATCH_ANCHORS, sigma=3)
    boxes = torch.from_numpy(golden["rois"][:, 1:])[None]
    classes = torch.from_numpy(golden["labels"]).long()[None]
    targets = torch.from_numpy(golden["bbox_targets"])[None]
    rois = RoiTargets(boxes, classes, targets, torch.ones_like(classes, dtype=torch.bool))
    return losses | head_terms(*model.classify(features, boxes), rois, sigma=1)
