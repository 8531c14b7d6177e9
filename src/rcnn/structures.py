"""What flows between the layers: named tuples of tensors of static shape, and the limits that fix the shapes.

Axis letters are those of docs/conventions.md: B images, G ground-truth slots, A anchors, P proposals, R sampled
RoIs, D detections, H W canvas. Every padded axis has a mask of the same name with `_valid`.
"""

from typing import NamedTuple

from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor


class Batch(NamedTuple):
    """One batch as the loader delivers it and the losses take it. Boxes are in canvas pixels."""

    images: UInt8[Tensor, "B H W 3"]  # RGB, zero outside image_size
    image_size: Int64[Tensor, "B 2"]  # height, width of the picture on the canvas, without padding
    scale: Float32[Tensor, "B"]  # canvas pixels per original pixel
    boxes: Float32[Tensor, "B G 4"]
    labels: Int64[Tensor, "B G"]  # 1..C, 0 in padding
    boxes_valid: Bool[Tensor, "B G"]  # ground truth to train on
    boxes_ignored: Bool[Tensor, "B G"]  # difficult or crowd: neither object nor background
    proposals: Float32[Tensor, "B P 4"]  # from a file; P = 0 where the RPN makes them
    proposals_valid: Bool[Tensor, "B P"]
    image_index: Int64[Tensor, "B"]  # position in the data set
    seed: Int64[Tensor, "B"]  # of this image in this epoch; all random sampling derives from it


class Proposals(NamedTuple):
    """Regions to classify, best first, in canvas pixels."""

    boxes: Float32[Tensor, "B P 4"]
    scores: Float32[Tensor, "B P"]
    valid: Bool[Tensor, "B P"]


class RpnOutput(NamedTuple):
    """What the region proposal network says of every anchor."""

    logits: Float32[Tensor, "B A"]  # objectness; a softmax pair is stored as object minus background
    deltas: Float32[Tensor, "B A 4"]
    anchors: Float32[Tensor, "A 4"]
    anchors_valid: Bool[Tensor, "B A"]  # the anchor's cell lies on the picture, not on padding


class AnchorTargets(NamedTuple):
    """Which anchors the RPN's losses see, and what they should say."""

    positive: Bool[Tensor, "B A"]
    chosen: Bool[Tensor, "B A"]  # sampled, positive or negative
    deltas: Float32[Tensor, "B A 4"]  # finite everywhere, meaningful where positive


class RoiTargets(NamedTuple):
    """The sampled RoIs of the second stage."""

    boxes: Float32[Tensor, "B R 4"]
    labels: Int64[Tensor, "B R"]  # 0 = background
    deltas: Float32[Tensor, "B R 4"]  # normalised
    valid: Bool[Tensor, "B R"]


class Detections(NamedTuple):
    """The final boxes of a batch, best first."""

    boxes: Float32[Tensor, "B D 4"]
    scores: Float32[Tensor, "B D"]
    labels: Int64[Tensor, "B D"]
    valid: Bool[Tensor, "B D"]


class Canvas(NamedTuple):
    """A size in pixels on which images are placed."""

    height: int
    width: int


class Limits(NamedTuple):
    """The static sizes of a data set's batches."""

    ground_truth: int  # G
    canvases: tuple[Canvas, ...]  # () = every image on a canvas of its own size ("exact")
    proposals: int = 0  # P, of proposals that come from a file
