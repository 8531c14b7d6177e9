"""Checkpoints of mx-rcnn, written as its versions and MXNet's wrote them, and what their detections are compared by."""

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rcnn.weights.mxnet import BOX_STD, V2
from tests.parity.golden import one_to_one

Form = Literal["v5", "v6"]  # of mx-rcnn
Header = Literal["legacy", "v2"]  # of MXNet: the number of axes first, as in 2016; or 0xF993FAC9
TIED = 0.3  # the IoU above which one of two detections of a class suppresses the other


def in_form(arrays: Mapping[str, np.ndarray], form: Form) -> dict[str, np.ndarray]:
    """A detector's arrays by the names of a checkpoint; v5 has copies of the box layer for testing that give deltas."""
    named = {f"{'aux' if '_moving_' in name else 'arg'}:{name}": array for name, array in arrays.items()}
    if form == "v5":
        std = np.tile(np.float32(BOX_STD), len(arrays["bbox_pred_bias"]) // 4)
        named["arg:bbox_pred_weight_test"] = arrays["bbox_pred_weight"] * std[:, None]
        named["arg:bbox_pred_bias_test"] = arrays["bbox_pred_bias"] * std
    return named


def write_params(path: Path, arrays: Mapping[str, np.ndarray], header: Header) -> Path:
    """A .params file of float32 arrays."""
    with path.open("wb") as file:
        file.write(struct.pack("<QQQ", 0x112, 0, len(arrays)))
        for array in arrays.values():
            axes = array.ndim
            if header == "legacy":
                file.write(struct.pack(f"<I{axes}I", axes, *array.shape))
            else:
                file.write(struct.pack(f"<Iii{axes}q", V2, 0, axes, *array.shape))
            file.write(struct.pack("<iii", 1, 0, 0))
            file.write(np.ascontiguousarray(array, "<f4").data)
        file.write(struct.pack("<Q", len(arrays)))
        for name in arrays:
            file.write(struct.pack("<Q", len(name)) + name.encode())
    return path


def agreement(found: list[dict[str, Any]], golden: np.ndarray, size: tuple[int, int]) -> tuple[int, int]:
    """How many of MXNet's detections are found, box within 0.1 px and score within 1e-3; and how many besides are tied.

    RoIs that round to the same cells have equal scores. mx-rcnn took them in the order of an unstable sort, so that
    of two overlapping ones either may have been kept: tied is one whose score an overlapping detection of ours has.

    Args:
        found: label, score and box (x1, y1, x2, y2), as `rcnn demo --json` prints them.
        golden: rows of label, score, box.
        size: height and width of the picture, outside of which MXNet's boxes may end by a fraction of a pixel.
    """
    limit = [size[1] - 1, size[0] - 1]
    exact = tied = 0
    for label in np.unique(golden[:, 0]):
        theirs = golden[golden[:, 0] == label, 1:]
        boxes = np.minimum(theirs[:, 1:], limit + limit)
        ours = [entry for entry in found if entry["label"] == label]
        our_boxes = np.array([entry["box"] for entry in ours]).reshape(-1, 4)
        scores = np.array([entry["score"] for entry in ours])
        match = one_to_one(our_boxes, boxes, within=0.1)
        near = np.append(scores, np.inf)[match]
        hit = (match >= 0) & (np.abs(near - theirs[:, 0]) < 1e-3)
        exact += int(hit.sum())
        for row in np.flatnonzero(~hit):
            equal = np.isclose(scores, theirs[row, 0], rtol=1e-4, atol=0)
            tied += bool((equal & (_iou(our_boxes, boxes[row]) > TIED)).any())
    return exact, tied


def _iou(boxes: np.ndarray, box: np.ndarray) -> np.ndarray:
    inside = np.minimum(boxes[:, 2:], box[2:]) - np.maximum(boxes[:, :2], box[:2]) + 1
    shared = inside.clip(min=0).prod(1)
    return shared / ((boxes[:, 2:] - boxes[:, :2] + 1).prod(1) + (box[2:] - box[:2] + 1).prod() - shared)
