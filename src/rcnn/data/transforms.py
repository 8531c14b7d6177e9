"""Resizing onto a canvas and mirroring: boxes move with the image."""

import cv2
import numpy as np
from jaxtyping import Float32, Float64, Int, Int64, UInt8

from rcnn.structures import Canvas


def resize_scales(sizes: Int[np.ndarray, "N 2"], *, short: int, long: int) -> Float64[np.ndarray, "N"]:
    """Scale at which each image's short side becomes `short`, or its long side `long` where that is less.

    Source: py-faster-rcnn and mx-rcnn, `resize`: the limit holds for the rounded long side.
    """
    sides = np.sort(sizes.astype(np.float64), axis=1)
    scales = short / sides[:, 0]
    return np.where(np.rint(scales * sides[:, 1]) > long, long / sides[:, 1], scales)


def resized_sizes(sizes: Int[np.ndarray, "N 2"], scales: Float64[np.ndarray, "N"]) -> Int64[np.ndarray, "N 2"]:
    """Height and width after scaling, rounded half to even as OpenCV does; at least 1."""
    return np.maximum(np.rint(sizes * scales[:, None]), 1).astype(np.int64)


def fit_scale(height: int, width: int, canvas: Canvas, *, short: int, long: int) -> float:
    """The scale of `resize_scales`, made smaller if the picture would not fit its canvas."""
    size = np.array([[height, width]])
    scales = resize_scales(size, short=short, long=long)
    if (resized_sizes(size, scales)[0] <= canvas).all():
        return float(scales[0])
    return min(canvas.height / height, canvas.width / width)


def resize_to_canvas(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float32[np.ndarray, "n 4"],
    canvas: Canvas,
    short: int,
    long: int,
    out: UInt8[np.ndarray, "H W 3"] | None = None,
) -> tuple[UInt8[np.ndarray, "H W 3"], tuple[int, int], float, Float32[np.ndarray, "n 4"]]:
    """Scales a picture and its boxes and puts it into the left top corner of a canvas, zero elsewhere.

    Args:
        out: a canvas to write into, whatever it holds; made if not given.

    Returns:
        The canvas, the (height, width) that the picture takes on it, the scale, and the boxes in canvas pixels.
    """
    height, width = image.shape[:2]
    scale = fit_scale(height, width, canvas, short=short, long=long)
    new_height, new_width = resized_sizes(np.array([[height, width]]), np.array([scale]))[0].tolist()
    if out is None:
        out = np.empty((*canvas, 3), np.uint8)
    out[new_height:], out[:new_height, new_width:] = 0, 0
    picture = out[:new_height, :new_width]
    if scale == 1.0:
        picture[...] = image
    else:
        rounds_to_nothing = min(height, width) * scale <= 0.5
        target = (new_width, new_height) if rounds_to_nothing else None
        cv2.resize(image, target, dst=picture, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    return out, (new_height, new_width), scale, boxes * np.float32(scale)


def flip_horizontal(
    image: UInt8[np.ndarray, "h w 3"], boxes: Float32[np.ndarray, "n 4"], offset: float
) -> tuple[UInt8[np.ndarray, "h w 3"], Float32[np.ndarray, "n 4"]]:
    """The mirror image and its boxes."""
    return cv2.flip(image, 1), flip_boxes(boxes, image.shape[1], offset)


def flip_boxes(boxes: Float32[np.ndarray, "n 4"], width: int, offset: float) -> Float32[np.ndarray, "n 4"]:
    """Boxes in the mirror image of a picture of that width."""
    flipped = boxes.copy()
    flipped[:, 0] = width - offset - boxes[:, 2]
    flipped[:, 2] = width - offset - boxes[:, 0]
    return flipped
