"""Mean and deviation of each class's box targets, measured on a training set and its proposals."""

import torch
from jaxtyping import Float32
from torch import Tensor

from rcnn.data.proposals import ProposalTable
from rcnn.data.records import Dataset, Record
from rcnn.ops.boxes import encode, iou

SMALLEST_STD = 1e-3  # below it the targets of a class do not vary: one RoI, or copies of one


def measure_box_units(
    dataset: Dataset,
    proposals: ProposalTable,
    *,
    offset: float,
    positive_iou: float,
    mirrored: bool,
    default_std: tuple[float, float, float, float],
) -> tuple[Float32[Tensor, "K 4"], Float32[Tensor, "K 4"]]:
    """Mean and standard deviation of (dx, dy, dw, dh) by class, over all RoIs that are objects.

    RoIs are the proposals and the objects themselves. A class or a coordinate that does not vary, for example because
    the class is absent, gets mean 0 and `default_std`.

    Args:
        positive_iou: a RoI belongs to the object it overlaps most from this IoU on.
        mirrored: the set is trained with mirror images, whose dx is the opposite.

    Source: Fast R-CNN 2.3; mx-rcnn, add_bbox_regression_targets (Differs: it divides by 0 for absent classes).
    """
    rows = len(dataset.classes) + 1
    count = torch.zeros(rows, 1, dtype=torch.float64)
    total, squares = torch.zeros(rows, 4, dtype=torch.float64), torch.zeros(rows, 4, dtype=torch.float64)
    for index in range(len(dataset)):
        labels, deltas = _targets(dataset[index], torch.from_numpy(proposals[index][0].copy()), offset, positive_iou)
        count.index_add_(0, labels, torch.ones(len(labels), 1, dtype=torch.float64))
        total.index_add_(0, labels, deltas)
        squares.index_add_(0, labels, deltas**2)
    mean = total / count.clamp(min=1)
    if mirrored:
        mean[:, 0] = 0
    std = (squares / count.clamp(min=1) - mean**2).clamp(min=0).sqrt()
    varies = std > SMALLEST_STD
    default = torch.tensor(default_std, dtype=torch.float64).expand_as(std)
    return torch.where(varies, mean, 0.0).float(), torch.where(varies, std, default).float()


def _targets(record: Record, proposals: Tensor, offset: float, positive_iou: float) -> tuple[Tensor, Tensor]:
    """Labels (m,) and deltas (m, 4) of the RoIs of one image that are objects."""
    objects = torch.from_numpy(record.boxes[~record.ignore])
    labels = torch.from_numpy(record.labels[~record.ignore])
    if not len(objects):
        return labels, torch.zeros(0, 4, dtype=torch.float64)
    rois = torch.cat([proposals, objects])
    best, index = iou(rois[None], objects[None], offset=offset)[0].max(dim=1)
    positive = best >= positive_iou
    deltas = encode(rois[positive][None], objects[index[positive]][None], offset=offset)[0]
    return labels[index[positive]], deltas.double()
