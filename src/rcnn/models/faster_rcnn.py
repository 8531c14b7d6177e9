"""Faster R-CNN: features, propose, classify, detect. `forward` is inference; losses live in `training`."""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float32, Int64, UInt8
from torch import Tensor, nn

from rcnn.models.heads import RoiHead
from rcnn.models.rpn import RPN
from rcnn.ops.boxes import clip, decode
from rcnn.ops.nms import nms
from rcnn.ops.roi import roi_align, roi_pool
from rcnn.structures import Detections, Proposals, RpnOutput

RoiOp = Literal["pool", "align", "align_legacy"]


class ProposalRules(NamedTuple):
    """How the RPN's output becomes proposals."""

    pre_nms: int
    post_nms: int
    nms: float
    min_size: float  # original pixels


class DetectionRules(NamedTuple):
    """How classified proposals become detections."""

    score: float
    nms: float
    most: int  # D


class FasterRCNN(nn.Module):
    """The whole detector, of static shapes: the canvas fixes every size but the batch's.

    Source: Ren et al. 2016 (Faster R-CNN); Girshick 2015 (Fast R-CNN).

    Args:
        offset: 1 for inclusive pixel boxes, 0 for continuous ones.
        beyond: see `ops.boxes.decode`.
        box_std: what the head's deltas are multiplied by; `box_mean` and `box_std` are kept for each class (K, 4).
    """

    pixel_mean: Tensor
    pixel_std: Tensor
    box_mean: Tensor
    box_std: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        rpn: RPN,
        head: RoiHead,
        *,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        offset: float,
        roi_op: RoiOp,
        roi_size: int,
        box_std: tuple[float, float, float, float],
        proposal_rules: ProposalRules,
        detection_rules: DetectionRules,
        beyond: float = 0.0,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn = rpn
        self.head = head
        self.offset = offset
        self.beyond = beyond
        self.roi_op = roi_op
        self.roi_size = roi_size
        self.proposal_rules = proposal_rules
        self.detection_rules = detection_rules
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std), persistent=False)
        rows = head.cls_score.out_features
        self.register_buffer("box_mean", torch.zeros(rows, 4), persistent=False)
        self.register_buffer("box_std", torch.tensor(box_std).repeat(rows, 1), persistent=False)

    def features(self, images: UInt8[Tensor, "B H W 3"], image_size: Int64[Tensor, "B 2"]) -> Float[Tensor, "B F h w"]:
        """The backbone's features; the canvas outside the picture is zero after normalisation, not before."""
        width = images.shape[2]  # a row of the picture as one axis: three values at a time take twice as long
        mean, std = (values.float().repeat(width) for values in (self.pixel_mean, self.pixel_std))
        x = images.flatten(2).float().sub_(mean).div_(std)
        rows = torch.arange(images.shape[1], device=images.device)[None] < image_size[:, :1]
        columns = torch.arange(width, device=images.device)[None] < image_size[:, 1:]
        x = x.mul_(rows[:, :, None]).mul_(columns.repeat_interleave(3, dim=1)[:, None])
        return self.backbone(x.unflatten(2, (width, 3)).permute(0, 3, 1, 2).to(_dtype(self.rpn.conv)))

    @torch.no_grad()
    def propose(
        self, rpn: RpnOutput, image_size: Int64[Tensor, "B 2"], scale: Float32[Tensor, "B"], rules: ProposalRules
    ) -> Proposals:
        """The best regions of each image after NMS; no gradient passes (approximate joint training, 3.2).

        Ranked by probability, equal ones by position: where it rounds to 1, that is MXNet's order.
        """
        pre_nms = min(rules.pre_nms, rpn.logits.shape[1])
        ranked = torch.where(rpn.anchors_valid, rpn.logits.sigmoid(), -1.0).sort(dim=1, descending=True, stable=True)
        scores, order = ranked.values[:, :pre_nms], ranked.indices[:, :pre_nms]
        deltas = rpn.deltas.gather(1, order[..., None].expand(-1, -1, 4))
        boxes = clip(
            decode(rpn.anchors[order], deltas, offset=self.offset, beyond=self.beyond), image_size, offset=self.offset
        )
        size = boxes[..., 2:] - boxes[..., :2] + self.offset
        valid = (size >= rules.min_size * scale[:, None, None]).all(-1) & (scores >= 0)
        post_nms = min(rules.post_nms, pre_nms)
        keep, kept = nms(boxes, scores, valid, iou_threshold=rules.nms, k=post_nms, offset=self.offset)
        boxes = boxes.gather(1, keep[..., None].expand(-1, -1, 4)) * kept[..., None]
        return Proposals(boxes, scores.gather(1, keep) * kept, kept)

    @torch.no_grad()
    def change_box_units(self, mean: Float32[Tensor, "K 4"], std: Float32[Tensor, "K 4"]) -> None:
        """Let the box layer speak of (delta - mean) / std of its class; what the model computes stays the same.

        Source: Fast R-CNN 2.3, targets of zero mean and unit variance.
        """
        layer = self.head.bbox_pred
        mean, std = mean.to(self.box_mean), std.to(self.box_std)
        layer.weight.mul_((self.box_std / std).flatten()[:, None])
        layer.bias.copy_(((layer.bias.view(-1, 4) * self.box_std + self.box_mean - mean) / std).flatten())
        self.box_mean.copy_(mean)
        self.box_std.copy_(std)
        if hasattr(layer, "low"):  # a copy for training of the weight as it was; the next step makes another
            del layer.low

    def classify(
        self,
        features: Float[Tensor, "B F h w"],
        boxes: Float32[Tensor, "B R 4"],
        seed: Int64[Tensor, "B"] | None = None,
    ) -> tuple[Float32[Tensor, "B R K"], Float32[Tensor, "B R K 4"]]:
        """Class logits (0 is background) and normalised box deltas of each RoI.

        Args:
            seed: of each image's dropout, in training.
        """
        options = {"output_size": self.roi_size, "spatial_scale": 1 / self.rpn.stride}
        if self.roi_op == "pool":
            pooled = roi_pool(features, boxes, **options)
        else:
            first = self.roi_op == "align_legacy"
            pooled = roi_align(features, boxes, **options, sampling_ratio=0 if first else 2, aligned=not first)
        logits, deltas = self.head(pooled, seed)
        shape = boxes.shape[:2]
        return logits.unflatten(0, shape), deltas.unflatten(0, shape).unflatten(-1, (-1, 4))

    def detect(
        self,
        proposals: Proposals,
        logits: Float32[Tensor, "B P K"],
        deltas: Float32[Tensor, "B P K 4"],
        image_size: Int64[Tensor, "B 2"],
        scale: Float32[Tensor, "B"],
    ) -> Detections:
        """Decode, then NMS in each class in original pixels, then the best of all classes; boxes in canvas pixels."""
        rules = self.detection_rules
        batch, count, classes = logits.shape[0], logits.shape[1], logits.shape[2] - 1
        scores = logits.softmax(-1)[..., 1:].transpose(1, 2)
        deltas = deltas[:, :, 1:] * self.box_std[1:].float() + self.box_mean[1:].float()
        boxes = decode(proposals.boxes[:, :, None], deltas, offset=self.offset, beyond=self.beyond)
        boxes = clip(boxes, image_size, offset=self.offset).transpose(1, 2)
        valid = ((scores > rules.score) & proposals.valid[:, None]).reshape(-1, count)
        k = min(rules.most, count)
        original = (boxes / scale[:, None, None, None]).reshape(-1, count, 4)
        scores = scores.reshape(-1, count)
        keep, kept = nms(original, scores, valid, iou_threshold=rules.nms, k=k, offset=self.offset)
        boxes = boxes.reshape(-1, count, 4).gather(1, keep[..., None].expand(-1, -1, 4)).view(batch, classes * k, 4)
        scores = torch.where(kept, scores.gather(1, keep), -1.0).view(batch, classes * k)
        return _best(boxes, scores, classes=classes, most=min(rules.most, classes * k))

    def forward(
        self,
        images: UInt8[Tensor, "B H W 3"],
        image_size: Int64[Tensor, "B 2"],
        scale: Float32[Tensor, "B"],
        proposals: Proposals | None = None,
    ) -> Detections:
        """Detections in canvas pixels, in given proposals (Fast R-CNN) or in those of the RPN.

        `scale` is canvas pixels per original pixel.
        """
        features = self.features(images, image_size)
        if proposals is None:
            proposals = self.propose(self.rpn(features, image_size), image_size, scale, self.proposal_rules)
        logits, deltas = self.classify(features, proposals.boxes)
        return self.detect(proposals, logits, deltas, image_size, scale)


def _dtype(conv: nn.Module) -> torch.dtype:
    """Of the maps that a layer in any form computes with, where they are not quantised."""
    return conv.weight.dtype if isinstance(conv, nn.Conv2d) else conv.dtype  # pyright: ignore[reportReturnType]


def _best(boxes: Tensor, scores: Tensor, *, classes: int, most: int) -> Detections:
    labels = torch.arange(1, classes + 1, device=scores.device).repeat_interleave(scores.shape[1] // classes)
    top, order = scores.topk(most, dim=1)
    valid = top > 0
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)) * valid[..., None]
    return Detections(boxes, top * valid, labels[order] * valid, valid)
