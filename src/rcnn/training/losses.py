"""The losses of Faster R-CNN as functions of model outputs and targets; masked means over static shapes.

The loss of a batch is the mean over its images of each image's own loss, so that it is the same however the images are
shared out over processes and passes. An image of which nothing is sampled, and an empty place, count as 0.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float32
from torch import Tensor
from torch.nn import functional as F

from rcnn.models.faster_rcnn import FasterRCNN, ProposalRules
from rcnn.structures import AnchorTargets, Batch, Proposals, RoiTargets, RpnOutput
from rcnn.training.targets import AnchorRules, RoiRules, assign_anchors, sample_rois


class LossRules(NamedTuple):
    """All that the losses need besides the model and the batch."""

    anchors: AnchorRules
    proposals: ProposalRules
    rois: RoiRules
    rpn_sigma: float
    head_sigma: float


def smooth_l1(x: Float32[Tensor, "*n"], *, sigma: float) -> Float32[Tensor, "*n"]:
    """Quadratic below 1 / sigma^2, linear above. Source: Fast R-CNN 2.3, equation 3, with mx-rcnn's sigma."""
    edge = 1 / sigma**2
    size = x.abs()
    return torch.where(size < edge, 0.5 * sigma**2 * x * x, size - 0.5 * edge)


def mean_of_images(values: Float32[Tensor, "B N"], chosen: Bool[Tensor, "B N"]) -> Float32[Tensor, ""]:
    """The mean over the images of each one's mean over what is chosen in it."""
    return (torch.where(chosen, values, 0.0).sum(1) / chosen.sum(1).clamp(min=1)).mean()


def rpn_terms(rpn: RpnOutput, targets: AnchorTargets, *, count: int, sigma: float) -> dict[str, Tensor]:
    """`rpn_cls`, the mean over an image's sampled anchors, and `rpn_box`, the sum over its positives / count.

    Source: Faster R-CNN 3.1.2, equation 1, weighted as in mx-rcnn (both terms per sampled anchor).
    """
    per_anchor = F.binary_cross_entropy_with_logits(rpn.logits, targets.positive.float(), reduction="none")
    per_box = smooth_l1(rpn.deltas - targets.deltas, sigma=sigma).sum(-1)
    right = (rpn.logits.detach() > 0) == targets.positive
    return {
        "rpn_cls": mean_of_images(per_anchor, targets.chosen),
        "rpn_box": torch.where(targets.positive, per_box, 0.0).sum() / (count * rpn.logits.shape[0]),
        "rpn_accuracy": mean_of_images(right.float(), targets.chosen),
    }


def head_terms(
    logits: Float32[Tensor, "B R K"], deltas: Float32[Tensor, "B R K 4"], targets: RoiTargets, *, sigma: float
) -> dict[str, Tensor]:
    """`head_cls`, the mean over an image's RoIs, and `head_box`, the sum over objects' own class / its RoIs.

    Source: Fast R-CNN 2.3, equations 1-2.
    """
    labels, valid = targets.labels, targets.valid
    per_roi = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape)
    own = labels[..., None, None].expand(-1, -1, 1, 4)
    per_box = smooth_l1(deltas.gather(2, own).squeeze(2) - targets.deltas, sigma=sigma).sum(-1)
    right = logits.detach().argmax(-1) == labels
    return {
        "head_cls": mean_of_images(per_roi, valid),
        "head_box": mean_of_images(torch.where(labels > 0, per_box, 0.0), valid),
        "head_accuracy": mean_of_images(right.float(), valid),
    }


def joint_loss(model: FasterRCNN, batch: Batch, rules: LossRules) -> dict[str, Tensor]:
    """The four losses, their sum `loss`, and both accuracies, of one batch.

    Source: Faster R-CNN 3.2, approximate joint training.
    """
    features = model.features(batch.images, batch.image_size)
    rpn = model.rpn(features, batch.image_size)
    scalars = _rpn_scalars(model, rpn, batch, rules)
    proposals = model.propose(rpn, batch.image_size, batch.scale, rules.proposals)
    scalars |= _head_scalars(model, features, proposals, batch, rules)
    scalars["loss"] = scalars["rpn_cls"] + scalars["rpn_box"] + scalars["head_cls"] + scalars["head_box"]
    return scalars


def rpn_loss(model: FasterRCNN, batch: Batch, rules: LossRules) -> dict[str, Tensor]:
    """The two losses of the region proposal network alone, their sum `loss`, and its accuracy.

    Source: Faster R-CNN 3.1.3; steps 1 and 3 of 3.2.
    """
    rpn = model.rpn(model.features(batch.images, batch.image_size), batch.image_size)
    scalars = _rpn_scalars(model, rpn, batch, rules)
    return scalars | {"loss": scalars["rpn_cls"] + scalars["rpn_box"]}


def fast_rcnn_loss(model: FasterRCNN, batch: Batch, rules: LossRules) -> dict[str, Tensor]:
    """The two losses of the second stage in the proposals of the batch, their sum `loss`, and its accuracy.

    Source: Fast R-CNN 2.3; steps 2 and 4 of Faster R-CNN 3.2.
    """
    features = model.features(batch.images, batch.image_size)
    proposals = Proposals(batch.proposals, batch.proposals_valid.float(), batch.proposals_valid)
    scalars = _head_scalars(model, features, proposals, batch, rules)
    return scalars | {"loss": scalars["head_cls"] + scalars["head_box"]}


def _rpn_scalars(model: FasterRCNN, rpn: RpnOutput, batch: Batch, rules: LossRules) -> dict[str, Tensor]:
    targets = assign_anchors(rpn, batch, rules.anchors, offset=model.offset)
    return rpn_terms(rpn, targets, count=rules.anchors.count, sigma=rules.rpn_sigma)


def _head_scalars(
    model: FasterRCNN, features: Tensor, proposals: Proposals, batch: Batch, rules: LossRules
) -> dict[str, Tensor]:
    units = {"box_mean": model.box_mean, "box_std": model.box_std}
    targets = sample_rois(proposals, batch, rules.rois, offset=model.offset, **units)
    logits, deltas = model.classify(features, targets.boxes, batch.seed)
    return head_terms(logits, deltas, targets, sigma=rules.head_sigma)
