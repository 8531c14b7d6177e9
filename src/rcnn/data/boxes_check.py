"""Boxes as annotation files have them, made sound: clipped to their image, or dropped if nothing is left."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int

TOLERANCE = 0.1  # px; COCO rounds coordinates to a hundredth, which is no error

NOT_FINITE = "box with a coordinate that is no finite number, dropped"
NO_AREA = "box without area (right <= left or bottom <= top), dropped"
OUTSIDE = "box wholly outside its image, dropped"
CLIPPED = "box reaching outside its image, clipped"


class CheckedBoxes(NamedTuple):
    """The outcome for every box."""

    edges: Float64[np.ndarray, "T 4"]
    kept: Bool[np.ndarray, "T"]
    problems: dict[str, Int[np.ndarray, "_"]]  # kind of problem -> positions of the boxes that have it


def check_boxes(edges: Float64[np.ndarray, "T 4"], sizes: Int[np.ndarray, "T 2"]) -> CheckedBoxes:
    """Clips boxes to their images and finds those of which nothing is left.

    Args:
        edges: left, top, right, bottom edge, continuous (an image spans 0 to its width, whatever the offset).
        sizes: height and width of the image of each box.
    """
    limits = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    finite = np.logical_and.reduce(np.isfinite(edges), axis=1)
    edges = np.where(finite[:, None], edges, 0.0)
    has_area = _spans(edges)
    clipped = np.clip(edges, 0.0, limits)
    remains = _spans(clipped)
    moved = np.logical_or.reduce(np.abs(clipped - edges) > TOLERANCE, axis=1)
    masks = {
        NOT_FINITE: ~finite,
        NO_AREA: finite & ~has_area,
        OUTSIDE: finite & has_area & ~remains,
        CLIPPED: finite & has_area & remains & moved,
    }
    problems = {kind: np.flatnonzero(mask) for kind, mask in masks.items() if mask.any()}
    return CheckedBoxes(clipped, finite & has_area & remains, problems)


def _spans(edges: Float64[np.ndarray, "T 4"]) -> Bool[np.ndarray, "T"]:
    return (edges[:, 2] > edges[:, 0]) & (edges[:, 3] > edges[:, 1])
