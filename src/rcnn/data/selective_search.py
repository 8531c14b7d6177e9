"""Selective search: boxes around groups of similar neighbouring regions, found without learning (by OpenCV)."""

from typing import Literal

import cv2
import numpy as np
from jaxtyping import Float32, Int64, UInt8

Mode = Literal["fast", "quality"]
# Px of the longer side when searched. Measured on 56 test pictures of VOC07 and 72 of blood cells, seconds of one core
# a picture (VOC) and share of the objects covered at IoU 0.5 (VOC, cells):
#   fast     300: 0.4 s .94 .82   400: 0.7 s .98 .84   500: 1.3 s .99 .85   640: 2.6 s   -  .87
#   quality  200: 0.5 s  -  .84   300: 1.5 s .97 .91   400: 2.8 s .98 .93   500: 4.0 s, no more of 18 pictures of cells
SIDES: dict[Mode, int] = {"fast": 500, "quality": 400}
MIN_SIDE = 2  # of x2 - x1 and y2 - y1. Source: mx-rcnn's filter_small_boxes, which takes > 2 for the height


def selective_search(
    image: UInt8[np.ndarray, "h w 3"], *, mode: Mode, most: int, seed: int, side: int | None = None
) -> Float32[np.ndarray, "n 4"]:
    """Boxes that may hold an object, best first: x1 y1 x2 y2 in whole pixels of the picture, inclusive (offset 1).

    Large boxes tend to come first, in an order drawn by `seed`. The same picture gives the same boxes in any process
    and after any other; another version of OpenCV or another kind of processor may give others.

    Args:
        image: RGB.
        mode: fast searches 6 segmentations in 2 ways each, quality 25 in 4.
        most: the boxes after these are left out. Equal boxes and those smaller than `MIN_SIDE` do not count.
        side: the picture is searched with its longer side at so many pixels, be it smaller or larger; None: `SIDES`.

    Raises:
        ValueError: if the mode is not known, or `most` or `side` is not positive.
        ImportError: if OpenCV is installed without its contributed modules.

    Source: Uijlings et al., Selective Search for Object Recognition (2013), 3 and 5.3; that pictures are brought to one
        size: Girshick, Fast R-CNN (2015), selective_search_boxes.m.
    Differs: the paper's random order by the place in the hierarchy, largest first, is one by the box's area, as OpenCV
        does not tell the hierarchy. OpenCV's own order puts the smallest first and depends on what ran before.
    """
    if mode not in SIDES or most < 1 or (side is not None and side < 1):
        raise ValueError(
            f"selective search: mode {mode!r}, most {most}, side {side}; use the mode fast or quality and at least 1"
        )
    height, width = image.shape[:2]
    small = _resize(image, side or SIDES[mode])
    x1, y1, *size = _search(cv2.cvtColor(small, cv2.COLOR_RGB2BGR), mode).T.astype(np.float64)
    edges = np.stack([x1, y1, x1 + size[0], y1 + size[1]], axis=1)
    scale = np.array([width / small.shape[1], height / small.shape[0]] * 2)
    boxes = np.rint(edges * scale).astype(np.int64) - [0, 0, 1, 1]
    large_enough = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(axis=1)
    return _order(boxes[large_enough], seed)[:most].astype(np.float32)


def _resize(image: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "h2 w2 3"]:
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)


def _search(image_bgr: UInt8[np.ndarray, "h w 3"], mode: Mode) -> np.ndarray:
    """Rows of x, y, width, height; the same set of rows each time, in an order that is not."""
    if not hasattr(cv2, "ximgproc"):
        raise ImportError(
            "this OpenCV has no module ximgproc: another of its packages lies over opencv-contrib-python-headless; "
            "uninstall opencv-python, opencv-python-headless and the like, then install that one again"
        )
    search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    search.setBaseImage(image_bgr)
    search.switchToSelectiveSearchFast() if mode == "fast" else search.switchToSelectiveSearchQuality()
    return np.asarray(search.process()).reshape(-1, 4)


def _order(boxes: Int64[np.ndarray, "n 4"], seed: int) -> Int64[np.ndarray, "m 4"]:
    """Without duplicates, sorted by a random number times the root of the place among the boxes from the largest on.

    The first 1000 of VOC (as above) so cover .955 of the objects by quality and .971 by fast; ordered by chance alone
    .959 and .980, but with a lower average recall (.66 and .64 for .68 and .66); by the place itself .929 and .968.
    """
    boxes = np.unique(boxes, axis=0)  # sorted too: the order they came in does not matter
    area = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    boxes = boxes[np.argsort(-area, kind="stable")]
    root = np.sqrt(np.arange(1, len(boxes) + 1))
    return boxes[np.argsort(root * np.random.default_rng(seed).random(len(boxes)), kind="stable")]
