"""The whole test-time forward of each network against MXNet's, on a photograph."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from rcnn.data.transforms import resize_to_canvas
from rcnn.structures import Canvas, Detections
from tests.parity.golden import forward_shapes, golden_model, one_to_one
from tests.parity.golden_detections import count_agreed, golden_detections, of_class, orders_of_ties

NETWORKS = ("vgg16", "resnet50", "resnet101")


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
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
        detections = model.detect(proposals, logits, deltas, image_size, scales)

    for name, ours in raw.items():
        theirs = golden[name]
        assert np.abs(ours[0].numpy() - theirs).max() <= 1e-4 * np.abs(theirs).max(), name
    match = one_to_one(proposals.boxes[0].numpy(), golden["rois"], within=0.1)
    assert (match >= 0).mean() >= 0.99
    ours_prob, ours_deltas = logits.softmax(-1)[0].numpy()[match], deltas[0].flatten(1).numpy()[match]
    found = match >= 0
    np.testing.assert_allclose(ours_prob[found], golden["cls_prob"][found], atol=1e-3)
    np.testing.assert_allclose(ours_deltas[found], golden["bbox_pred"][found], atol=1e-3)
    _compare_detections(detections, golden_detections(golden), scale)


def _compare_detections(detections: Detections, theirs: np.ndarray, scale: float) -> None:
    """Theirs: class from 1, score, box in the original picture."""
    valid = detections.valid[0]
    columns = (detections.labels[0, valid, None], detections.scores[0, valid, None], detections.boxes[0, valid] / scale)
    ours = torch.cat(columns, 1).numpy()
    assert len(ours) == len(theirs)
    assert count_agreed(ours, theirs) >= 0.99 * len(theirs)


@pytest.mark.parametrize("network", NETWORKS)
def test_golden_detections_are_those_of_the_golden_rois_in_an_order_of_equal_scores(shared: Path, network: str) -> None:
    """All of them: to take equal scores by position changes nothing but which of two equals is first."""
    golden = np.load(shared / "golden" / f"{network}.npz")
    orders = list(orders_of_ties(golden["cls_prob"]))
    assert len(orders) == {"vgg16": 1, "resnet50": 2**3, "resnet101": 2**7}[network]
    for label in range(1, golden["cls_prob"].shape[1]):
        theirs = golden["detections"][golden["detections"][:, 0] == label]
        tries = (of_class(golden, label, rank) for rank in orders)
        assert any(len(ours) == len(theirs) == count_agreed(ours, theirs) for ours in tries), label
