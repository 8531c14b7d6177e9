"""What the losses compare with: labels and deltas of anchors, and the RoIs of the second stage.

All of it is masked, of static shape, float32 and without gradient.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from rcnn.ops.anchors import inside_image
from rcnn.ops.boxes import covered, encode, iou
from rcnn.ops.sampling import pick, random_keys
from rcnn.structures import AnchorTargets, Batch, Proposals, RoiTargets, RpnOutput

TIE = 1e-6  # IoUs closer than this are equal: compiled code may round the same product differently twice


class AnchorRules(NamedTuple):
    """Which anchors train the RPN. Source: Faster R-CNN 3.1.2."""

    count: int  # sampled per image
    positive_share: float
    positive_iou: float
    negative_iou: float
    border: float  # pixels over the edge; negative: any anchor may train
    ignore_overlap: float
    low_best: bool = True  # an object's best anchor is positive even below negative_iou (mx-rcnn v6: is not)


class RoiRules(NamedTuple):
    """Which RoIs train the second stage. Source: Fast R-CNN 2.3."""

    count: int  # R
    positive_share: float
    positive_iou: float
    background_iou: tuple[float, float]
    ignore_overlap: float


def _match(boxes: Tensor, batch: Batch, offset: float) -> tuple[Tensor, Tensor, Tensor]:
    """IoU with every object (0 in padding), the best object's IoU and index."""
    # Objects come last: with boxes last, inductor (torch 2.13) compiles the training step to code that crashes.
    objects, valid = _used(batch.boxes, batch.boxes_valid)
    overlaps = iou(boxes, objects, offset=offset) * valid[:, None, :]
    best, index = overlaps.max(dim=2)
    return overlaps, best, index


def _in_ignored(boxes: Float32[Tensor, "B N 4"], batch: Batch, share: float, offset: float) -> Bool[Tensor, "B N"]:
    areas, ignored = _used(batch.boxes, batch.boxes_ignored)
    inside = covered(boxes, areas, offset=offset) * ignored[:, None, :]
    return inside.amax(dim=2) >= share


def _used(
    boxes: Float32[Tensor, "B G 4"], used: Bool[Tensor, "B G"]
) -> tuple[Float32[Tensor, "B g 4"], Bool[Tensor, "B g"]]:
    """Without the slots after the last one that an image uses, where looking costs nothing: on a CPU."""
    if boxes.device.type != "cpu" or torch.compiler.is_compiling():
        return boxes, used
    slots = used.any(dim=0).nonzero()
    count = int(slots[-1]) + 1 if len(slots) else 1
    return boxes[:, :count], used[:, :count]


@torch.no_grad()
def label_anchors(
    rpn: RpnOutput, batch: Batch, rules: AnchorRules, *, offset: float
) -> tuple[Bool[Tensor, "B A"], Bool[Tensor, "B A"], Float32[Tensor, "B A 4"]]:
    """Which anchors are objects and which are background, before sampling, and the regression to their object.

    An anchor is positive from `positive_iou` on, or where it is an object's best (ties included).
    Source: Faster R-CNN 3.1.2. Differs from mx-rcnn: an object that no anchor touches makes none positive.
    """
    anchors = rpn.anchors[None].expand(batch.boxes.shape[0], -1, -1)
    candidates = rpn.anchors_valid & _is_image(batch)
    if rules.border >= 0:
        candidates = candidates & inside_image(rpn.anchors, batch.image_size, border=rules.border, offset=offset)
    overlaps, best, index = _match(anchors, batch, offset)
    of_object = (overlaps * candidates[:, :, None]).amax(dim=1, keepdim=True)
    is_best = ((overlaps >= of_object - TIE) & (of_object > TIE)).any(dim=2)
    if not rules.low_best:
        is_best = is_best & (best >= rules.negative_iou)
    positive = candidates & ((best >= rules.positive_iou) | is_best)
    ignored = _in_ignored(anchors, batch, rules.ignore_overlap, offset)
    negative = candidates & ~positive & (best < rules.negative_iou) & ~ignored
    target = batch.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    return positive, negative, encode(anchors, target, offset=offset)


@torch.no_grad()
def assign_anchors(rpn: RpnOutput, batch: Batch, rules: AnchorRules, *, offset: float) -> AnchorTargets:
    """A sample of the labelled anchors: positives up to their share, background for the rest."""
    positive, negative, deltas = label_anchors(rpn, batch, rules, offset=offset)
    most = int(rules.count * rules.positive_share)
    size = positive.shape[1]
    positive = pick(positive, random_keys(batch.seed, size, stream=0), most=most, count=_full(batch, most))
    remaining = rules.count - positive.sum(dim=1)
    negative = pick(negative, random_keys(batch.seed, size, stream=1), most=rules.count, count=remaining)
    return AnchorTargets(positive, positive | negative, deltas)


@torch.no_grad()
def sample_rois(
    proposals: Proposals,
    batch: Batch,
    rules: RoiRules,
    *,
    offset: float,
    box_mean: Float32[Tensor, "K 4"],
    box_std: Float32[Tensor, "K 4"],
) -> RoiTargets:
    """R of the proposals and the objects themselves, objects first; slots that found no candidate are invalid.

    Args:
        box_mean, box_std: by class, in which the deltas are expressed: (delta - mean) / std.

    Source: Fast R-CNN 2.3. Differs from mx-rcnn: a shortage of background leaves slots empty instead of repeating
    RoIs; the losses are means over the filled ones.
    """
    boxes = torch.cat([proposals.boxes, batch.boxes], dim=1)
    valid = torch.cat([proposals.valid, batch.boxes_valid], dim=1) & _is_image(batch)
    _, best, index = _match(boxes, batch, offset)
    low, high = rules.background_iou
    ignored = _in_ignored(boxes, batch, rules.ignore_overlap, offset)
    positive = valid & (best >= rules.positive_iou)
    background = valid & ~positive & (best >= low) & (best < high) & ~ignored
    keys = random_keys(batch.seed, boxes.shape[1], stream=2)
    most = int(rules.count * rules.positive_share)
    positive = pick(positive, keys, most=most, count=_full(batch, most))
    count = min(rules.count, boxes.shape[1])
    value, order = torch.where(positive, keys + 1, torch.where(background, keys, -1.0)).topk(count, dim=1)
    chosen = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    index = index.gather(1, order)
    labels = batch.labels.gather(1, index) * positive.gather(1, order)
    target = batch.boxes.gather(1, index[..., None].expand(-1, -1, 4))
    deltas = (encode(chosen, target, offset=offset) - box_mean[labels]) / box_std[labels]
    return RoiTargets(chosen, labels, deltas, value > 0)


def _is_image(batch: Batch) -> Bool[Tensor, "B 1"]:
    """False at the empty places of the batch, of which nothing is learnt."""
    return (batch.image_index >= 0)[:, None]


def _full(batch: Batch, count: int) -> Tensor:
    return torch.full_like(batch.seed, count)
