"""From the golden RoIs to detections as mx-rcnn's testing does it, in plain NumPy, and what hangs on equal scores."""

from collections.abc import Iterator, Mapping
from itertools import permutations, product

import numpy as np

from rcnn.weights.mxnet import BOX_STD
from tests.parity.golden import one_to_one

NMS, SCORE = 0.3, 0.001


def golden_detections(golden: Mapping[str, np.ndarray], rank: np.ndarray | None = None) -> np.ndarray:
    """Rows of label, score and box in the original picture from the golden `rois`, `cls_prob` and `bbox_pred`.

    A tie is between RoIs whose probabilities are equal in every bit and class: they pool the same cells. Where they
    overlap, the first one suppresses the other. mx-rcnn takes them in the order of NumPy's argsort, which is not stable
    (of 300 RoIs seven pairs are tied with ResNet-101, three with ResNet-50, none with VGG16); we take them by position.

    Args:
        rank: of each RoI among those that it is tied with; None: by position.
    """
    rows = [row for label in range(1, golden["cls_prob"].shape[1]) for row in of_class(golden, label, rank)]
    return np.array(rows, np.float32)


def of_class(golden: Mapping[str, np.ndarray], label: int, rank: np.ndarray | None = None) -> np.ndarray:
    """The rows of one class; see `golden_detections`."""
    height, width, scale = golden["im_info"].ravel()
    boxes = _decoded(golden["rois"], golden["bbox_pred"][:, 4 * label : 4 * label + 4] * np.float32(BOX_STD))
    boxes = boxes.clip(0, np.float32([width - 1, height - 1] * 2)) / scale
    scores = golden["cls_prob"][:, label]
    order = np.lexsort((np.arange(len(scores)) if rank is None else rank, -scores))
    kept = _nms(boxes, order[scores[order] > SCORE])
    return np.column_stack([np.full(len(kept), label), scores[kept], boxes[kept]])


def orders_of_ties(probabilities: np.ndarray) -> Iterator[np.ndarray]:
    """A rank for each RoI, for every order in which the tied ones can be taken; the first is by position."""
    _, group, sizes = np.unique(probabilities, axis=0, return_inverse=True, return_counts=True)
    tied = [np.flatnonzero(group.ravel() == i) for i in np.flatnonzero(sizes > 1)]
    for orders in product(*(permutations(range(len(members))) for members in tied)):
        rank = np.zeros(len(probabilities))
        for members, order in zip(tied, orders, strict=True):
            rank[members] = order
        yield rank


def count_agreed(ours: np.ndarray, theirs: np.ndarray) -> int:
    """How many rows (label, score, box) of theirs one of ours has, each used once: box within 0.1 px, score 1e-3."""
    agreed = 0
    for label in np.unique(theirs[:, 0]):
        mine, wanted = ours[ours[:, 0] == label, 1:], theirs[theirs[:, 0] == label, 1:]
        match = one_to_one(mine[:, 1:], wanted[:, 1:], within=0.1)
        scores = np.append(mine[:, 0], np.inf)[match]
        agreed += int((np.abs(scores - wanted[:, 0]) < 1e-3).sum())
    return agreed


def _decoded(rois: np.ndarray, deltas: np.ndarray) -> np.ndarray:
    size = rois[:, 2:] - rois[:, :2] + 1
    centre = rois[:, :2] + 0.5 * (size - 1) + deltas[:, :2] * size
    half = 0.5 * (np.exp(deltas[:, 2:]) * size - 1)
    return np.concatenate([centre - half, centre + half], 1)


def _nms(boxes: np.ndarray, order: np.ndarray) -> list[int]:
    areas, kept = (boxes[:, 2:] - boxes[:, :2] + 1).prod(1), []
    while len(order):
        first, order = order[0], order[1:]
        kept.append(int(first))
        low, high = np.maximum(boxes[first, :2], boxes[order, :2]), np.minimum(boxes[first, 2:], boxes[order, 2:])
        shared = (high - low + 1).clip(min=0).prod(1)
        order = order[shared / (areas[first] + areas[order] - shared) <= NMS]
    return kept
