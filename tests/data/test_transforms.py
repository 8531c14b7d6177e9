import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.data.transforms import fit_scale, flip_boxes, flip_horizontal, resize_scales, resize_to_canvas, resized_sizes
from rcnn.structures import Canvas

SIDES = st.integers(1, 400)
NONE = np.zeros((0, 4), np.float32)


def scale_of(height: int, width: int) -> float:
    return float(resize_scales(np.array([[height, width]]), short=600, long=1000)[0])


def random_image(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_scales_of_mx_rcnn() -> None:
    assert scale_of(375, 500) == scale_of(500, 375) == 600 / 375
    assert scale_of(200, 500) == 1000 / 500
    assert scale_of(5998, 10000) == 600 / 5998  # the long side is 1000.33, which rounds to the limit
    assert scale_of(5990, 10000) == 1000 / 10000


def test_rounds_half_to_even() -> None:
    assert resized_sizes(np.array([[5, 7], [1, 900]]), np.array([0.5, 0.1])).tolist() == [[2, 4], [1, 90]]


@given(SIDES, SIDES, st.floats(0.2, 4))
def test_sizes_agree_with_opencv(height: int, width: int, scale: float) -> None:
    height, width = max(height, 3), max(width, 3)
    resized = cv2.resize(np.zeros((height, width), np.uint8), None, fx=scale, fy=scale)
    assert resized.shape == tuple(resized_sizes(np.array([[height, width]]), np.array([scale]))[0])


@given(SIDES, SIDES)
def test_pixels_are_those_of_opencv(height: int, width: int) -> None:
    image = random_image(height, width)
    canvas, size, scale, _ = resize_to_canvas(image, NONE, Canvas(160, 160), 100, 150)
    assert (np.array(size) >= 1).all() and max(size) <= 150
    if min(height, width) * scale > 0.5:
        expected = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(canvas[: size[0], : size[1]], expected)
    assert not canvas[size[0] :].any() and not canvas[:, size[1] :].any()


def test_boxes_are_scaled_with_the_picture() -> None:
    boxes = np.array([[0, 0, 9, 4], [1, 2, 3, 4]], np.float32)
    _, size, scale, scaled = resize_to_canvas(random_image(10, 20), boxes, Canvas(32, 64), 20, 60)
    assert size == (20, 40) and scale == 2.0
    assert scaled.tolist() == [[0, 0, 18, 8], [2, 4, 6, 8]] and scaled.dtype == np.float32
    assert boxes[0].tolist() == [0, 0, 9, 4]


def test_a_picture_of_the_right_size_is_copied() -> None:
    image = random_image(20, 30)
    canvas, size, scale, _ = resize_to_canvas(image, NONE, Canvas(32, 32), 20, 30)
    assert size == (20, 30) and scale == 1.0 and np.array_equal(canvas[:20, :30], image)
    canvas[:] = 0
    assert image.any()


def test_writes_into_a_given_canvas() -> None:
    out = np.full((2, 32, 64, 3), 7, np.uint8)
    canvas, *_ = resize_to_canvas(random_image(10, 20), NONE, Canvas(32, 64), 20, 60, out=out[1])
    fresh, *_ = resize_to_canvas(random_image(10, 20), NONE, Canvas(32, 64), 20, 60)
    assert np.shares_memory(canvas, out) and np.array_equal(out[1], fresh) and (out[0] == 7).all()


@given(SIDES, SIDES, SIDES, SIDES)
def test_always_fits_its_canvas(height: int, width: int, canvas_height: int, canvas_width: int) -> None:
    canvas = Canvas(canvas_height, canvas_width)
    scale = fit_scale(height, width, canvas, short=100, long=150)
    size = np.array([[height, width]])
    assert (resized_sizes(size, np.array([scale]))[0] <= canvas).all()
    assert scale <= resize_scales(size, short=100, long=150)[0]


@pytest.mark.parametrize(("offset", "expected"), [(1.0, [6, 2, 8, 4]), (0.0, [7, 2, 9, 4])])
def test_mirrors_boxes(offset: float, expected: list[int]) -> None:
    boxes = np.array([[1, 2, 3, 4]], np.float32)
    image, flipped = flip_horizontal(random_image(5, 10), boxes, offset)
    assert flipped.tolist() == [expected] and np.array_equal(image, random_image(5, 10)[:, ::-1])
    assert boxes.tolist() == [[1, 2, 3, 4]]


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 4), min_size=1), st.sampled_from([0.0, 1.0]))
def test_mirroring_twice_changes_nothing(corners: list[tuple[int, ...]], offset: float) -> None:
    boxes = np.array(corners, np.float32)
    assert np.array_equal(flip_boxes(flip_boxes(boxes, 51, offset), 51, offset), boxes)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_boxes_stay_on_their_object_when_mirrored(offset: float) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    image[2:5, 1:4] = 255
    boxes = np.array([[1, 2, 4 - offset, 5 - offset]], np.float32)
    mirrored, flipped = flip_horizontal(image, boxes, offset)
    left, top, right, bottom = (flipped[0] + [0, 0, offset, offset]).astype(int)
    assert mirrored[top:bottom, left:right].all() and mirrored.sum() == image.sum()
