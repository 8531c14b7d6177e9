"""The whole test-time forward of each network against MXNet's, on a photograph."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rcnn.data.transforms import resize_to_canvas
from rcnn.models.faster_rcnn import FasterRCNN
from rcnn.ops.boxes import clip, decode
from rcnn.structures import Canvas, Proposals
from tests.parity.golden import forward_shapes, golden_model, one_to_one


@pytest.mark.slow
@pytest.mark.parametrize("network", ["vgg16", "resnet50", "resnet101"])
def test_forward(shared: Path, network: str) -> None:
    golden = np.load(shared / "golden" / f"{network}.npz")
    model = golden_model(shared, network, forward_shapes(shared, network))
    image = cv2.imread(str(shared / "golden" / "coffee.png"))[:, :, ::-1]
    none = np.zeros((0, 4), np.float32)
    placed, size, scale, _ = resize_to_canvas(np.ascontiguousarray(image), none, Canvas(600, 900), 600, 1000)
    np.testing.assert_allclose([*size, scale], golden["im_info"].ravel(), rtol=1e-6)

    images, image_size, scales = torch.from_numpy(placed)[None], torch.tensor([size]), torch.tensor([float(scale)])
    raw: dict[str, torch.Tensor] = {}
    model.rpn.cls.register_forward_hook(lambda module, args, out: raw.__setitem__("rpn_cls_score", out))
    model.rpn.box.register_forward_hook(lambda module, args, out: raw.__setitem__("rpn_bbox_pred", out))
    with torch.no_grad():
        features = model.features(images, image_size)
        proposals = model.propose(model.rpn(features, image_size), image_size, scales, model.proposal_rules)
        logits, deltas = model.classify(features, proposals.boxes)
        order = _order_of_ties(model, proposals, deltas, golden["detections"], scale)
        tied = Proposals(proposals.boxes[:, order], proposals.scores[:, order], proposals.valid[:, order])
        detections = model.detect(tied, logits[:, order], deltas[:, order], image_size, scales)

    for name, ours in raw.items():
        theirs = golden[name]
        assert np.abs(ours[0].numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
    match = one_to_one(proposals.boxes[0].numpy(), golden["rois"], within=0.1)
    assert (match >= 0).mean() >= 0.99
    ours_prob, ours_deltas = logits.softmax(-1)[0].numpy()[match], deltas[0].flatten(1).numpy()[match]
    found = match >= 0
    np.testing.assert_allclose(ours_prob[found], golden["cls_prob"][found], atol=1e-3)
    np.testing.assert_allclose(ours_deltas[found], golden["bbox_pred"][found], atol=1e-3)
    _compare_detections(detections, golden["detections"], scale)


def _order_of_ties(
    model: FasterRCNN, proposals: Proposals, deltas: torch.Tensor, theirs: np.ndarray, scale: float
) -> torch.Tensor:
    """RoIs that MXNet's run kept a detection of come first.

    RoIs that round to the same cells have equal scores, and the golden run took them in the arbitrary order of an
    unstable sort. Ours takes equal scores by position, so this order changes nothing but the choice among equals.
    """
    boxes = decode(proposals.boxes[0][:, None], deltas[0] * model.box_std, offset=1)
    boxes = clip(boxes[None], torch.tensor([[600, 900]]), offset=1)[0].numpy() / scale
    kept = sum((np.abs(boxes[:, int(row[0])] - row[2:]).max(1) < 0.1).astype(int) for row in theirs)
    return torch.from_numpy(np.argsort(-kept, kind="stable"))


def _compare_detections(detections, theirs: np.ndarray, scale: float) -> None:
    """Theirs: class from 1, score, box in the original picture."""
    valid = detections.valid[0].numpy()
    boxes = detections.boxes[0].numpy()[valid] / scale
    labels, scores = detections.labels[0].numpy()[valid], detections.scores[0].numpy()[valid]
    assert abs(len(boxes) - len(theirs)) <= 0.01 * len(theirs)
    agreed = 0
    for label in np.unique(theirs[:, 0]):
        ours, mine = np.flatnonzero(labels == label), theirs[theirs[:, 0] == label]
        match = one_to_one(boxes[ours], mine[:, 2:], within=0.1) if len(ours) else np.full(len(mine), -1)
        close = np.abs(scores[ours[match]] - mine[:, 1]) < 1e-3 if len(ours) else np.zeros(len(mine), bool)
        agreed += int(((match >= 0) & close).sum())
    assert agreed >= 0.99 * len(theirs)
