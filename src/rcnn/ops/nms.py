"""Non-maximum suppression of fixed-size outputs: the PyTorch reference, and the operator `rcnn::nms` that is faster."""

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from rcnn.ops import kernels
from rcnn.ops.boxes import iou


def nms(
    boxes: Float32[Tensor, "B N 4"],
    scores: Float32[Tensor, "B N"],
    valid: Bool[Tensor, "B N"],
    *,
    iou_threshold: float,
    k: int,
    offset: float,
) -> tuple[Int64[Tensor, "B k"], Bool[Tensor, "B k"]]:
    """Keep the best boxes of each image, none overlapping a better kept one by more than the threshold.

    Args:
        boxes: In any one frame; gradients do not pass.
        scores: Ties go to the lower index. A box whose score is NaN counts as invalid.
        valid: Boxes that take part.
        iou_threshold: In [0, 1]; a box is suppressed where IoU is strictly larger.
        k: Slots of the result; the search stops when they are full.
        offset: 1 for inclusive pixel corners, 0 for continuous ones.

    Returns:
        Positions of the kept boxes, best first, and which of the k slots are filled; an empty slot's position is 0.

    Raises:
        ValueError: If the threshold or k makes no sense.

    Source: Girshick et al., Rich feature hierarchies, 2.3 (greedy, per class).
    """
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"nms: iou_threshold is {iou_threshold}; give a number from 0 to 1")
    if k < 1:
        raise ValueError(f"nms: k is {k}; it must keep at least one box")
    run = _nms if torch.compiler.is_compiling() else _run_nms  # dispatch loads the compiler at first, for a second
    return run(boxes, scores, valid, iou_threshold, k, offset)


def nms_reference(
    boxes: Float32[Tensor, "B N 4"],
    scores: Float32[Tensor, "B N"],
    valid: Bool[Tensor, "B N"],
    *,
    iou_threshold: float,
    k: int,
    offset: float,
) -> tuple[Int64[Tensor, "B k"], Bool[Tensor, "B k"]]:
    """Compute `nms` by k steps of: take the best box alive, remove what overlaps it."""
    alive = valid & ~scores.isnan()
    order = scores.masked_fill(~alive, -torch.inf).argsort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order[..., None].expand_as(boxes))
    alive = alive.gather(1, order)
    index, kept = order.new_zeros(len(boxes), k), valid.new_zeros(len(boxes), k)
    for slot in range(min(k, boxes.shape[1])):
        first = alive.to(torch.uint8).argmax(dim=1, keepdim=True)
        kept[:, slot] = alive.gather(1, first)[:, 0]
        index[:, slot] = order.gather(1, first)[:, 0]
        best = boxes.gather(1, first[..., None].expand(-1, 1, 4))
        alive &= ~(iou(best, boxes, offset=offset)[:, 0] > iou_threshold)
        alive.scatter_(1, first, False)
    return index * kept, kept


def _run_nms(
    boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float, k: int, offset: float
) -> tuple[Tensor, Tensor]:
    boxes, scores = boxes.detach(), scores.detach()
    module = kernels.module_for(boxes.device)
    if module is None:
        return nms_reference(boxes, scores, valid, iou_threshold=iou_threshold, k=k, offset=offset)
    index, kept = _nms_shapes(boxes, scores, valid, iou_threshold, k, offset)
    threads = torch.get_num_threads()
    module.nms(boxes.contiguous(), scores.contiguous(), valid.contiguous(), index, kept, iou_threshold, offset, threads)
    return index, kept


_nms = torch.library.custom_op("rcnn::nms", _run_nms, mutates_args=())


@_nms.register_fake
def _nms_shapes(
    boxes: Tensor, scores: Tensor, valid: Tensor, iou_threshold: float, k: int, offset: float
) -> tuple[Tensor, Tensor]:
    shape = (boxes.shape[0], k)
    return boxes.new_empty(shape, dtype=torch.int64), boxes.new_empty(shape, dtype=torch.bool)
