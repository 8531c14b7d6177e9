"""Boxes, anchors, targets, proposals and losses against MXNet's."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rcnn.models.faster_rcnn import FasterRCNN, ProposalRules
from rcnn.ops.anchors import base_anchors, cells_on_image, grid_anchors
from rcnn.ops.boxes import clip, decode, encode, iou
from rcnn.structures import Batch, RpnOutput
from rcnn.training.losses import smooth_l1
from rcnn.training.targets import AnchorRules, label_anchors
from tests.parity.golden import MODELS, one_to_one

SCALES, RATIOS = (8.0, 16.0, 32.0), (0.5, 1.0, 2.0)
Golden = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    with np.load(shared / "golden" / "ops.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def test_anchors(golden: Golden) -> None:
    base = base_anchors(SCALES, RATIOS, stride=16, offset=1)
    torch.testing.assert_close(base, golden["anchor.base"])
    torch.testing.assert_close(grid_anchors(base, (5, 7), stride=16), golden["anchor.grid_5x7"])
    wide = base_anchors((2.0, 4.0, 8.0, 16.0, 32.0), RATIOS, stride=16, offset=1)
    torch.testing.assert_close(wide, golden["anchor.base_5scales"])


def test_iou(golden: Golden) -> None:
    ours = iou(golden["iou.boxes"][None], golden["iou.query"][None], offset=1)[0]
    torch.testing.assert_close(ours, golden["iou.out"], rtol=1e-4, atol=1e-6)


def test_encode(golden: Golden) -> None:
    ours = encode(golden["transform.ex"], golden["transform.gt"], offset=1)
    torch.testing.assert_close(ours, golden["transform.out"], rtol=1e-4, atol=1e-5)
    scaled = ours / torch.tensor([0.1, 0.1, 0.2, 0.2])
    torch.testing.assert_close(scaled, golden["transform.out_stds"], rtol=1e-4, atol=1e-4)


def test_decode_and_clip(golden: Golden) -> None:
    deltas = golden["pred.deltas"].view(200, 21, 4) * torch.tensor([0.1, 0.1, 0.2, 0.2])
    ours = decode(golden["iou.boxes"][:, None], deltas, offset=1)
    torch.testing.assert_close(ours.view(200, 84), golden["pred.out"], rtol=1e-4, atol=1e-2)
    clipped = clip(ours[None], torch.tensor([[600, 800]]), offset=1)[0]
    torch.testing.assert_close(clipped.view(200, 84), golden["pred.clipped"], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("sigma", [1, 3])
def test_smooth_l1(golden: Golden, sigma: int) -> None:
    torch.testing.assert_close(smooth_l1(golden["smooth_l1.x"], sigma=sigma), golden[f"smooth_l1.sigma{sigma}"])


def _rpn_output(feature_size: tuple[int, int], size: torch.Tensor) -> RpnOutput:
    base = base_anchors(SCALES, RATIOS, stride=16, offset=1)
    anchors = grid_anchors(base, feature_size, stride=16)
    on_image = cells_on_image(size, feature_size, stride=16, num_anchors=9, partial=False)
    zeros = torch.zeros(1, len(anchors))
    return RpnOutput(zeros, zeros[..., None].expand(-1, -1, 4), anchors, on_image)


def test_anchor_labels(golden: Golden) -> None:
    objects = golden["assign.gt"]
    valid = (objects[:, 4] > 0)[None]
    size = torch.tensor([[600, 900]])
    none = torch.zeros(1, dtype=torch.int64)
    batch = Batch(
        images=torch.zeros(1, 600, 900, 3, dtype=torch.uint8),
        image_size=size,
        scale=torch.ones(1),
        boxes=torch.where(valid[0, :, None], objects[:, :4], 0.0)[None],
        labels=(objects[:, 4].long() * valid[0])[None],
        boxes_valid=valid,
        boxes_ignored=torch.zeros_like(valid),
        proposals=torch.zeros(1, 0, 4),
        proposals_valid=torch.zeros(1, 0, dtype=torch.bool),
        image_index=none,
        seed=none,
    )
    rules = AnchorRules(10**6, 0.5, 0.7, 0.3, 0.0, 2.0, low_best=False)  # the golden file is of v6
    positive, negative, deltas = label_anchors(_rpn_output((38, 57), size), batch, rules, offset=1)
    theirs = golden["assign.labels"]
    assert torch.equal(positive[0], theirs == 1)
    assert torch.equal(negative[0], theirs == 0)
    torch.testing.assert_close(deltas[0][golden["assign.fg"]], golden["assign.fg_targets"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("case", "pre_nms", "post_nms"), [("test", 6000, 300), ("train", 12000, 2000)])
def test_proposals(golden: Golden, case: str, pre_nms: int, post_nms: int) -> None:
    ours = _propose(golden, case, ProposalRules(pre_nms, post_nms, 0.7, 16))
    theirs = golden[f"proposal_{case}.rois"][:, 1:].numpy()
    match = one_to_one(ours[0].numpy(), theirs, within=0.1)
    assert (match >= 0).mean() >= 0.99
    scores = golden[f"proposal_{case}.scores"][:, 0].numpy()
    np.testing.assert_allclose(ours[1].numpy()[match[match >= 0]], scores[match >= 0], atol=1e-4)


def test_proposals_of_a_small_image(golden: Golden) -> None:
    """Where fewer boxes are left than asked for, MXNet repeats and adds rejected ones; ours are the real ones alone."""
    boxes, scores = _propose(golden, "small", ProposalRules(6000, 300, 0.7, 16))
    theirs = golden["proposal_small.rois"][:, 1:].numpy()
    assert len(boxes) > 20 and (scores > 0).all()
    distance = np.abs(boxes.numpy()[:, None] - theirs[None]).max(-1).min(1)
    assert (distance < 0.1).all()


def _propose(golden: Golden, case: str, rules: ProposalRules) -> tuple[torch.Tensor, torch.Tensor]:
    prob, deltas, info = (golden[f"proposal_{case}.{name}"] for name in ("prob", "deltas", "im_info"))
    size = info[:2].long()[None]
    rpn = _rpn_output(tuple(prob.shape[1:]), size)
    logits = (prob[9:] / prob[:9]).log().permute(1, 2, 0).reshape(1, -1)
    rpn = rpn._replace(logits=logits, deltas=deltas.permute(1, 2, 0).reshape(1, -1, 4))
    model = FasterRCNN.__new__(FasterRCNN)
    torch.nn.Module.__init__(model)
    model.offset, model.beyond = MODELS["vgg16"].offset, 0.0
    proposals = model.propose(rpn, size, info[2:], rules)
    return proposals.boxes[0][proposals.valid[0]], proposals.scores[0][proposals.valid[0]]
