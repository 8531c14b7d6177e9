"""A detector, batches and rules small enough that a test can train with them in milliseconds."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rcnn.models.faster_rcnn import DetectionRules, FasterRCNN, ProposalRules
from rcnn.models.heads import FCHead
from rcnn.models.rpn import RPN
from rcnn.structures import Batch
from rcnn.training.losses import LossRules
from rcnn.training.targets import AnchorRules, RoiRules

CANVAS = (64, 96)
PROPOSALS = ProposalRules(pre_nms=64, post_nms=24, nms=0.7, min_size=4)
DETECTIONS = DetectionRules(score=0.001, nms=0.3, most=10)


class Patches(nn.Module):
    """Each cell sees its own 16 x 16 pixels only and black gives 0, so padding cannot reach the picture's cells."""

    channels = 8
    stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, self.channels, 16, 16, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


def detector(*, classes: int = 3, offset: float = 1.0, seed: int = 0, **changes: Any) -> FasterRCNN:
    """A detector with random weights; `changes` are arguments of FasterRCNN, of its head (dropout) or of its RPN."""
    torch.manual_seed(seed)
    backbone = changes.pop("backbone", None) or Patches()
    anchors = {"scales": (1, 2), "ratios": (0.5, 1, 2)}
    rpn_options = {key: changes.pop(key, value) for key, value in (anchors | {"partial_cells": False}).items()}
    hidden = changes.pop("rpn_hidden", 8)
    rpn = RPN(backbone.channels, hidden=hidden, stride=backbone.stride, offset=offset, **rpn_options)
    head = FCHead(backbone.channels, 3, hidden=16, dropout=changes.pop("dropout", 0.0), num_classes=classes)
    options: dict[str, Any] = {
        "pixel_mean": (120.5, 115.5, 105.5),
        "pixel_std": (60.0, 60.0, 60.0),
        "roi_op": "pool",
        "roi_size": 3,
        "box_std": (0.1, 0.1, 0.2, 0.2),
        "proposal_rules": PROPOSALS,
        "detection_rules": DETECTIONS,
    }
    return FasterRCNN(backbone, rpn, head, offset=offset, **(options | changes))


def rules(**changes: Any) -> LossRules:
    """Rules of the joint loss; `changes` are fields of AnchorRules, RoiRules (as roi_*) or LossRules."""
    rois = RoiRules(16, 0.25, 0.5, (0.0, 0.5), ignore_overlap=0.5)
    anchors = AnchorRules(32, 0.5, 0.7, 0.3, border=0.0, ignore_overlap=0.5)
    joint = LossRules(anchors, PROPOSALS, rois, rpn_sigma=3.0, head_sigma=1.0)
    for name, value in changes.items():
        if name in LossRules._fields:
            joint = joint._replace(**{name: value})
        elif name.startswith("roi_"):
            joint = joint._replace(rois=joint.rois._replace(**{name.removeprefix("roi_"): value}))
        else:
            joint = joint._replace(anchors=joint.anchors._replace(**{name: value}))
    return joint


def boxes(seed: int, count: int, size: tuple[int, int] = CANVAS, *, least: float = 8.0) -> Tensor:
    """Random boxes (count, 4) on a picture of that height and width, sides from `least` on."""
    draw = torch.rand(count, 4, generator=torch.Generator().manual_seed(seed))
    room = torch.tensor([size[1], size[0]]).float() - 1
    sides = least + draw[:, :2] * (room - least)
    corner = draw[:, 2:] * (room - sides)
    return torch.cat([corner, corner + sides], 1).round()


def batch(
    *, objects: tuple[int, ...] = (2, 1), slots: int = 4, canvas: tuple[int, int] = CANVAS, seed: int = 0
) -> Batch:
    """Random pictures that fill their canvas, one for each number of objects, their boxes in the first slots."""
    count = len(objects)
    generator = torch.Generator().manual_seed(seed)
    placed, labels = torch.zeros(count, slots, 4), torch.zeros(count, slots, dtype=torch.int64)
    for i, number in enumerate(objects):
        placed[i, :number] = boxes(seed * 100 + i, number, canvas)
        labels[i, :number] = torch.arange(number) % 3 + 1
    return Batch(
        images=torch.randint(0, 256, (count, *canvas, 3), dtype=torch.uint8, generator=generator),
        image_size=torch.tensor([canvas] * count),
        scale=torch.ones(count),
        boxes=placed,
        labels=labels,
        boxes_valid=labels > 0,
        boxes_ignored=torch.zeros(count, slots, dtype=torch.bool),
        proposals=torch.zeros(count, 0, 4),
        proposals_valid=torch.zeros(count, 0, dtype=torch.bool),
        image_index=torch.arange(count),
        seed=torch.arange(count) + 1000 * seed + 7,
    )


def rows(batch: Batch, *indices: int) -> Batch:
    """Some images of a batch, in that order."""
    return Batch(*(x[list(indices)] for x in batch))


def pad(batch: Batch, *, height: int = 0, width: int = 0, slots: int = 0) -> Batch:
    """The same pictures on a larger canvas with more slots; what is added is junk that masks must hide."""
    images = F.pad(batch.images, (0, 0, 0, width, 0, height), value=255)
    more = batch.boxes.new_tensor([3.0, 2.0, 40.0, 30.0]).expand(len(images), slots, 4)
    off = torch.zeros(len(images), slots, dtype=torch.bool)
    return batch._replace(
        images=images,
        boxes=torch.cat([batch.boxes, more], 1),
        labels=F.pad(batch.labels, (0, slots)),
        boxes_valid=torch.cat([batch.boxes_valid, off], 1),
        boxes_ignored=torch.cat([batch.boxes_ignored, off], 1),
    )
