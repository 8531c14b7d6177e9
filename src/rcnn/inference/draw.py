"""Detections drawn on their picture."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8

FONT = cv2.FONT_HERSHEY_SIMPLEX
FONT_HEIGHT = 21.0  # pixels of a capital at scale 1
LINE_SHARE = 0.0035  # of the mean of the picture's sides
TEXT_SHARE = 0.021
MIN_TEXT = 9.0  # pixels
GOLDEN_RATIO = 0.61803398875  # hues that far apart stay apart, however many there are
HUE_STOPS = (0.0, 0.2, 0.35, 0.5, 0.62, 0.78, 0.9, 1.0)  # where on an even scale to the eye ...
HUES = (0.0, 0.085, 0.165, 0.33, 0.5, 0.61, 0.77, 1.0)  # ... these hues lie: there are many greens, few oranges
TONES = ((0.85, 1.0), (0.5, 1.0), (0.95, 0.8))  # saturation and value: bright, pastel, dark

Colour = tuple[int, int, int]


class _Label(NamedTuple):
    text: str
    colour: Colour
    left: int
    top: int
    width: int
    height: int


class _Style(NamedTuple):
    line: int
    scale: float
    stroke: int
    padding: int
    ascent: int
    descent: int


def draw_detections(
    image: UInt8[np.ndarray, "h w 3"],
    boxes: Float[np.ndarray, "n 4"],
    labels: Int[np.ndarray, "n"],
    scores: Float[np.ndarray, "n"],
    names: Sequence[str],
) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of an RGB picture with a frame, class name and score for each detection, the strongest on top.

    Args:
        boxes: in pixels of the picture; what is outside of it is cut.
        labels: 1..C; `names` holds the C class names.

    Raises:
        ValueError: if the picture is not 8-bit RGB.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"cannot draw on a picture of shape {image.shape} and type {image.dtype}; "
            f"give it as (height, width, 3) uint8, as rcnn.data.images.read_image does"
        )
    canvas = image.copy(order="C")
    height, width = canvas.shape[:2]
    texts = [f"{names[label - 1]} {score:.2f}" for label, score in zip(labels.tolist(), scores.tolist(), strict=True)]
    style = _fitting_style((height + width) / 2, texts, width)
    corners = np.rint(boxes).astype(np.int64).clip(0, [width - 1, height - 1, width - 1, height - 1]).tolist()
    weakest_first = np.argsort(scores, kind="stable").tolist()
    for i in weakest_first:
        _draw_frame(canvas, corners[i], class_colour(int(labels[i])), style)
    placed: list[_Label] = []
    for i in reversed(weakest_first):  # the strongest gets the best place
        colour = class_colour(int(labels[i]))
        placed.append(_place_label(texts[i], colour, corners[i], (height, width), style, placed))
    for label in reversed(placed):
        _draw_label(canvas, label, style)
    return canvas


def class_colour(label: int) -> Colour:
    """The RGB colour of a class, the same in every picture."""
    saturation, value = TONES[label % len(TONES)]
    hue = float(np.interp(label * GOLDEN_RATIO % 1.0, HUE_STOPS, HUES))
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _fitting_style(side: float, texts: list[str], width: int) -> _Style:
    """Lines and letters for a picture of that mean side; letters are smaller where the longest text needs it."""
    text = max(MIN_TEXT, TEXT_SHARE * side)
    style = _style(side, text)
    longest = max((_text_width(text, style) + 2 * style.padding for text in texts), default=0)
    return style if longest <= width else _style(side, text * 0.95 * width / longest)


def _style(side: float, text: float) -> _Style:
    scale, stroke = text / FONT_HEIGHT, max(1, round(1.6 * text / FONT_HEIGHT))
    (_, ascent), descent = cv2.getTextSize("Ag0", FONT, scale, stroke)  # of every text, so that labels are alike
    return _Style(max(1, round(LINE_SHARE * side)), scale, stroke, max(2, round(text * 0.35)), ascent, descent)


def _text_width(text: str, style: _Style) -> int:
    return cv2.getTextSize(text, FONT, style.scale, style.stroke)[0][0]


def _draw_frame(canvas: UInt8[np.ndarray, "h w 3"], corners: list[int], colour: Colour, style: _Style) -> None:
    x1, y1, x2, y2 = corners
    edge = 2 * max(1, style.line // 3)  # a dark rim, so that the frame shows on its own colour too
    cv2.rectangle(canvas, (x1, y1), (x2, y2), (0, 0, 0), style.line + edge, cv2.LINE_8)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, style.line, cv2.LINE_8)


def _place_label(
    text: str, colour: Colour, corners: list[int], size: tuple[int, int], style: _Style, placed: list[_Label]
) -> _Label:
    """The label above its frame or, where the picture ends or another label is, inside or below it."""
    width = _text_width(text, style) + 2 * style.padding
    height = style.ascent + style.descent + style.padding
    x1, y1, x2, y2 = corners
    reach = (style.line + 1) // 2
    tops = (y1 - height - reach, y1 + reach, y2 + reach, y2 - height - reach)
    spots = [(left, top) for left in (x1 - reach, x2 + reach - width) for top in tops]
    inside = [spot for spot in spots if 0 <= spot[1] <= size[0] - height] or [(x1 - reach, max(0, size[0] - height))]
    candidates = [_Label(text, colour, max(0, min(x, size[1] - width)), y, width, height) for x, y in inside]
    return next((label for label in candidates if not any(_overlap(label, other) for other in placed)), candidates[0])


def _overlap(a: _Label, b: _Label) -> bool:
    apart_across = a.left + a.width <= b.left or b.left + b.width <= a.left
    apart_down = a.top + a.height <= b.top or b.top + b.height <= a.top
    return not (apart_across or apart_down)


def _draw_label(canvas: UInt8[np.ndarray, "h w 3"], label: _Label, style: _Style) -> None:
    right, bottom = label.left + label.width - 1, label.top + label.height - 1
    cv2.rectangle(canvas, (label.left, label.top), (right, bottom), label.colour, cv2.FILLED)
    origin = (label.left + style.padding, bottom - style.descent - style.padding // 2 + 1)
    ink = (0, 0, 0) if _luminance(label.colour) > 110 else (255, 255, 255)
    cv2.putText(canvas, label.text, origin, FONT, style.scale, ink, style.stroke, cv2.LINE_AA)


def _luminance(colour: Colour) -> float:
    red, green, blue = colour
    return 0.299 * red + 0.587 * green + 0.114 * blue  # Rec. 601
