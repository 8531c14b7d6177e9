"""Drawn detections: frames where the boxes are, labels in the picture, colours that tell classes apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.inference.draw import _fitting_style, _overlap, _place_label, class_colour, draw_detections

NAMES = ("cat", "dog")


def draw(image, boxes, labels, scores, names=NAMES):
    return draw_detections(
        image, np.array(boxes, np.float32).reshape(-1, 4), np.array(labels, np.int64), np.array(scores), names
    )


def grey(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), 120, np.uint8)


def test_the_frame_has_its_class_colour_and_the_rest_is_untouched():
    image = grey()
    drawn = draw(image, [[100, 80, 200, 150]], [2], [0.5])
    for y, x in [(80, 190), (150, 120), (115, 100), (115, 200)]:
        assert tuple(drawn[y, x]) == class_colour(2)
    assert (drawn[90:140, 110:190] == 120).all()
    assert (drawn[160:] == 120).all()
    assert (image == 120).all()


def test_the_label_stands_above_the_frame():
    drawn = draw(grey(), [[100, 80, 200, 150]], [1], [0.5])
    above = drawn[60:78, 100:150].reshape(-1, 3)
    assert (above == class_colour(1)).all(1).mean() > 0.4
    assert (above.max(1) < 60).sum() > 20  # letters in black


def test_the_strongest_is_on_top():
    box = [100, 80, 200, 150]
    for labels in ([1, 2], [2, 1]):
        drawn = draw(grey(), [box, box], labels, [0.9, 0.3])
        assert tuple(drawn[150, 150]) == class_colour(labels[0])


def test_without_detections_the_picture_is_a_copy():
    image = grey()
    drawn = draw(image, [], [], [])
    assert (drawn == image).all() and drawn is not image


def test_boxes_outside_of_the_picture_are_cut():
    drawn = draw(grey(), [[-50, -50, 5000, 5000]], [1], [0.9])
    assert tuple(drawn[199, 150]) == tuple(drawn[100, 0]) == class_colour(1)


def test_lines_grow_with_the_picture():
    small, large = (
        draw(grey(), [[50, 80, 250, 180]], [1], [0.9]),
        draw(grey(1000, 1500), [[250, 400, 1250, 900]], [1], [0.9]),
    )

    def line(image, x, rows):
        return (image[rows, x] == class_colour(1)).all(1).sum()

    assert line(large, 700, slice(700, 1000)) > 2 * line(small, 140, slice(140, 200)) > 0


@given(
    size=st.tuples(st.integers(16, 600), st.integers(40, 600)),
    corners=st.lists(st.tuples(*[st.integers(0, 15)] * 4), min_size=1, max_size=6),
    name=st.sampled_from(["a", "traffic light", "a very long name of a class"]),
)
def test_labels_stay_in_the_picture(size, corners, name):
    height, width = size
    text = f"{name} 0.99"
    style = _fitting_style((height + width) / 2, [text], width)
    placed = []
    for a, b, c, d in corners:
        xs, ys = sorted((a * width // 16, c * width // 16)), sorted((b * height // 16, d * height // 16))
        placed.append(_place_label(text, (0, 0, 0), [xs[0], ys[0], xs[1], ys[1]], size, style, placed))
    for label in placed:
        assert label.left >= 0 and label.left + label.width <= width
        assert label.top >= 0 and (label.top + label.height <= height or label.height > height)


def test_a_label_makes_way_for_a_stronger_one():
    style = _fitting_style(250.0, ["cat 0.99"], 300)
    corners = [100, 80, 200, 150]
    first = _place_label("cat 0.99", (0, 0, 0), corners, (200, 300), style, [])
    second = _place_label("cat 0.98", (0, 0, 0), corners, (200, 300), style, [first])
    assert not _overlap(first, second)


def test_colours_tell_classes_apart():
    colours = np.array([class_colour(label) for label in range(1, 21)], np.float64)
    distance = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    assert distance[~np.eye(20, dtype=bool)].min() > 35
    assert len({class_colour(label) for label in range(1, 81)}) == 80


@pytest.mark.parametrize("image", [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3))])
def test_other_pictures_are_refused(image):
    with pytest.raises((ValueError, TypeError), match=r"shape|image"):
        draw(image, [], [], [])
