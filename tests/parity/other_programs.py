"""What simple-faster-rcnn-pytorch and jwyang's program compute at test time, written anew from their conventions.

Slow and plain on purpose, anchor by anchor and RoI by RoI, with corners in their order: nothing of rcnn is used.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

POOLINGS = (4, 9, 16, 23)  # places of the poolings in torchvision's `features` of VGG16
LAYERS = 30
BOX_STD = np.array([0.1, 0.1, 0.2, 0.2])
# Source: the table in py-faster-rcnn's generate_anchors.py, of its MATLAB twin, which counts pixels from one.
PY_FASTER_RCNN_ANCHORS = -1.0 + np.array(
    [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]
)


class Found(NamedTuple):
    """A detection, in pixels of the original picture."""

    label: int  # 0 is background
    score: float
    box: tuple[float, float, float, float]  # x1, y1, x2, y2


RoiOp = Callable[[Tensor, np.ndarray], Tensor]


class Keys(NamedTuple):
    """How a program names its layers."""

    trunk: str
    rpn: tuple[str, str, str]  # 3x3, scores, deltas
    head: tuple[str, str, str, str]  # fc6, fc7, classes, boxes


SIMPLE = Keys(
    "extractor",
    ("rpn.conv1", "rpn.score", "rpn.loc"),
    ("head.classifier.0", "head.classifier.2", "head.score", "head.cls_loc"),
)
JWYANG = Keys(
    "RCNN_base",
    ("RCNN_rpn.RPN_Conv", "RCNN_rpn.RPN_cls_score", "RCNN_rpn.RPN_bbox_pred"),
    ("RCNN_top.0", "RCNN_top.3", "RCNN_cls_score", "RCNN_bbox_pred"),
)


def random_state(keys: Keys, classes: int, hidden: int, seed: int, *, box_rows: int | None = None) -> dict[str, Tensor]:
    """Random weights by the program's names, of such sizes that scores and boxes spread."""
    generator = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = {}

    def add(name: str, shape: tuple[int, ...], std: float) -> None:
        state[f"{name}.weight"] = torch.randn(shape, generator=generator) * std
        state[f"{name}.bias"] = torch.randn(shape[:1], generator=generator) * 0.1

    channels = 3
    widths = iter([64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512])
    for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28):
        width = next(widths)
        add(f"{keys.trunk}.{i}", (width, channels, 3, 3), math.sqrt(2 / (9 * channels)))
        channels = width
    add(keys.rpn[0], (512, 512, 3, 3), math.sqrt(2 / (9 * 512)))
    add(keys.rpn[1], (18, 512, 1, 1), 0.1)
    add(keys.rpn[2], (36, 512, 1, 1), 0.02)
    add(keys.head[0], (hidden, 512 * 49), math.sqrt(2 / (512 * 49)))
    add(keys.head[1], (hidden, hidden), math.sqrt(2 / hidden))
    add(keys.head[2], (classes + 1, hidden), 0.3)
    add(keys.head[3], (box_rows or 4 * (classes + 1), hidden), 0.2)
    return state


def features(state: Mapping[str, Tensor], keys: Keys, image: np.ndarray) -> Tensor:
    """`image` (3, H, W) as the network wants it."""
    x = torch.from_numpy(image).float()[None]
    for i in range(LAYERS):
        if i in POOLINGS:
            x = F.max_pool2d(x, 2)
        elif f"{keys.trunk}.{i}.weight" in state:
            x = F.relu(F.conv2d(x, *layer(state, f"{keys.trunk}.{i}"), padding=1))
    return x


def layer(state: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return state[f"{name}.weight"], state[f"{name}.bias"]


def rpn_maps(state: Mapping[str, Tensor], keys: Keys, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    hidden = F.relu(F.conv2d(x, *layer(state, keys.rpn[0]), padding=1))
    scores, deltas = (F.conv2d(hidden, *layer(state, name))[0].double().numpy() for name in keys.rpn[1:])
    return scores, deltas


def simple_detect(
    state: Mapping[str, Tensor], image: np.ndarray, size: tuple[int, int], *, least_score: float
) -> list[Found]:
    """Boxes are (y1, x1, y2, x2), continuous.

    Args:
        image: (3, H, W) resized, in the range and order that the weights want.
        size: height and width of the original picture.
    """
    height, width = image.shape[1:]
    scale = width / size[1]
    x = features(state, SIMPLE, image)
    scores, deltas = rpn_maps(state, SIMPLE, x)
    rois, ranks = [], []
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            for i in range(9):
                side, ratio = 16 * (8, 16, 32)[i % 3], (0.5, 1, 2)[i // 3]
                h, w = side * math.sqrt(ratio), side * math.sqrt(1 / ratio)
                y0, x0 = 16 * row + 8, 16 * column + 8
                anchor = np.array([y0 - h / 2, x0 - w / 2, y0 + h / 2, x0 + w / 2])
                roi = moved(anchor, deltas[4 * i : 4 * i + 4, row, column], one=0, beyond=0)
                roi = np.clip(roi, 0, [height, width, height, width])
                if roi[2] - roi[0] >= 16 * scale and roi[3] - roi[1] >= 16 * scale:
                    background, thing = scores[2 * i : 2 * i + 2, row, column]
                    rois.append(roi)
                    ranks.append(1 / (1 + math.exp(background - thing)))
    rois = kept(np.array(rois), np.array(ranks), 0.7, one=0)[:300]
    chances, deltas = head(state, SIMPLE, x, [roi[[1, 0, 3, 2]] for roi in rois], pool)
    limit = np.array([*size, *size], float)

    def box(roi: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return np.clip(moved(roi / scale, delta * BOX_STD, one=0, beyond=0), 0, limit)

    found = detections(rois, chances, deltas, box, least_score, one=0)
    return [Found(label, score, (b[1], b[0], b[3], b[2])) for label, score, b in found]


def jwyang_detect(
    state: Mapping[str, Tensor],
    image: np.ndarray,
    size: tuple[int, int],
    *,
    least_score: float,
    pooling_mode: str = "pool",
    beyond: float = 1.0,
) -> list[Found]:
    """Boxes are (x1, y1, x2, y2) and include their last pixel.

    Args:
        image: (3, H, W) resized, in the range and order that the weights want.
        size: height and width of the original picture.
        beyond: what decoding adds to x2 and y2. Its bbox_transform_inv, like py-faster-rcnn's, forgets that the last
            pixel is included, so that 1 is what it does; MXNet's and ours is 0.
    """
    height, width = image.shape[1:]
    x = features(state, JWYANG, image)
    scores, deltas = rpn_maps(state, JWYANG, x)
    edge = np.array([width, height, width, height]) - 1.0
    rois, ranks = [], []
    for row in range(x.shape[2]):
        for column in range(x.shape[3]):
            for i, anchor in enumerate(PY_FASTER_RCNN_ANCHORS):
                shifted = anchor + 16 * np.array([column, row, column, row])
                roi = moved(shifted, deltas[4 * i : 4 * i + 4, row, column], one=1, beyond=beyond)
                rois.append(np.clip(roi, 0, edge))
                ranks.append(1 / (1 + math.exp(scores[i, row, column] - scores[9 + i, row, column])))
    rois = kept(np.array(rois), np.array(ranks), 0.7, one=1)[:300]
    chances, deltas = head(state, JWYANG, x, rois, pool if pooling_mode == "pool" else align)

    def box(roi: np.ndarray, delta: np.ndarray) -> np.ndarray:
        return np.clip(moved(roi, delta * BOX_STD, one=1, beyond=beyond), 0, edge) * size[1] / width

    found = detections(rois, chances, deltas, box, least_score, one=1)
    return [Found(label, score, tuple(b)) for label, score, b in found]


def moved(box: np.ndarray, delta: np.ndarray, *, one: float, beyond: float) -> np.ndarray:
    """A box (a1, b1, a2, b2) after the regression (da, db, log a, log b)."""
    sides = box[2:] - box[:2] + one
    centre = box[:2] + (sides - one) / 2 + delta[:2] * sides
    sides = sides * np.exp(delta[2:])
    return np.concatenate([centre - (sides - one) / 2, centre + (sides - one) / 2 + beyond])


def kept(boxes: np.ndarray, scores: np.ndarray, overlap: float, *, one: float) -> np.ndarray:
    """The best of boxes that overlap by more, best first."""
    return boxes[survivors(boxes, scores, overlap, one=one)]


def survivors(boxes: np.ndarray, scores: np.ndarray, overlap: float, *, one: float) -> list[int]:
    chosen: list[int] = []
    for i in np.argsort(-scores, kind="stable").tolist()[:6000]:
        if all(shared(boxes[i], boxes[j], one) <= overlap for j in chosen):
            chosen.append(i)
    return chosen


def shared(a: np.ndarray, b: np.ndarray, one: float) -> float:
    inside = (np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]) + one).clip(min=0).prod()
    return inside / ((a[2:] - a[:2] + one).prod() + (b[2:] - b[:2] + one).prod() - inside)


def head(
    state: Mapping[str, Tensor], keys: Keys, x: Tensor, rois: list[np.ndarray] | np.ndarray, take: RoiOp
) -> tuple[np.ndarray, np.ndarray]:
    """Chances (n, K) and deltas (n, K, 4) of RoIs (x1, y1, x2, y2) on the picture."""
    pooled = torch.stack([take(x[0], roi) for roi in rois]).flatten(1)
    for name in keys.head[:2]:
        pooled = F.relu(F.linear(pooled, *layer(state, name)))
    chances = F.linear(pooled, *layer(state, keys.head[2])).double().softmax(1).numpy()
    deltas = F.linear(pooled, *layer(state, keys.head[3])).double().numpy()
    return chances, deltas.reshape(len(deltas), -1, 4)


def pool(x: Tensor, roi: np.ndarray) -> Tensor:
    """The largest feature of each of 7 x 7 bins; both rounded corners belong to the RoI. Source: Caffe's ROIPooling."""
    x1, y1, x2, y2 = (math.floor(value / 16 + 0.5) for value in roi)
    rows, columns = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    out = torch.zeros(x.shape[0], 7, 7)
    for i in range(7):
        for j in range(7):
            top, bottom = max(y1 + i * rows // 7, 0), min(y1 - (-(i + 1) * rows // 7), x.shape[1])
            left, right = max(x1 + j * columns // 7, 0), min(x1 - (-(j + 1) * columns // 7), x.shape[2])
            if top < bottom and left < right:
                out[:, i, j] = x[:, top:bottom, left:right].amax((1, 2))
    return out


def align(x: Tensor, roi: np.ndarray) -> Tensor:
    """The mean of bilinear samples, as many a side as the bin has cells. Source: the first maskrcnn-benchmark."""
    x1, y1, x2, y2 = roi / 16
    weights = []
    for begin, length, cells in ((y1, max(y2 - y1, 1), x.shape[1]), (x1, max(x2 - x1, 1), x.shape[2])):
        step, count = length / 7, math.ceil(length / 7)
        weights.append(np.zeros((7, cells)))
        for i in range(7):
            for k in range(count):
                at = begin + i * step + (k + 0.5) * step / count
                if -1 <= at <= cells:
                    at = min(max(at, 0), cells - 1)
                    low = min(int(at), cells - 2)
                    weights[-1][i, low] += (1 - (at - low)) / count
                    weights[-1][i, low + 1] += (at - low) / count
    rows, columns = (torch.from_numpy(w) for w in weights)
    return (rows @ x.double() @ columns.T).float()


def detections(
    rois: np.ndarray,
    chances: np.ndarray,
    deltas: np.ndarray,
    box: Callable[[np.ndarray, np.ndarray], np.ndarray],
    least_score: float,
    *,
    one: float,
) -> list[tuple[int, float, np.ndarray]]:
    found = []
    for label in range(1, chances.shape[1]):
        rows = np.flatnonzero(chances[:, label] > least_score)
        if len(rows):
            of_class = min(label, deltas.shape[1] - 1)  # a class-agnostic layer has one box for all
            boxes = np.array([box(rois[i], deltas[i, of_class]) for i in rows])
            chosen = survivors(boxes, chances[rows, label], 0.3, one=one)
            found += [(label, float(chances[rows[i], label]), boxes[i]) for i in chosen]
    return found
