"""Recall of proposals: by hand, against a plain loop, and what must always hold."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.evaluation.ground_truth import AnnotatedImage
from rcnn.evaluation.recall import BINS, evaluate_recall, match_one_to_one
from rcnn.evaluation.table import format_recall

SIDES = {"all": (0, np.inf), "0-25": (0, 25), "25-50": (25, 50), "50-100": (50, 100), "100-200": (100, 200)}
SIDES |= {"200-300": (200, 300), "300-inf": (300, np.inf)}


class Proposed(NamedTuple):
    image_id: str
    boxes: np.ndarray


def truth(boxes, ignore=None, image_id="a") -> AnnotatedImage:
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    ignore = np.zeros(len(boxes), np.bool_) if ignore is None else np.array(ignore, np.bool_)
    none = np.zeros(len(boxes), np.bool_)
    return AnnotatedImage(image_id, boxes, np.ones(len(boxes), np.int64), ignore, none, np.zeros(len(boxes)))


def proposed(boxes, image_id="a") -> Proposed:
    return Proposed(image_id, np.array(boxes, np.float32).reshape(-1, 4))


def square(side, x=0.0, y=0.0) -> list[float]:
    return [x, y, x + side, y + side]


def bins(ground_truth, proposals, offset=0.0) -> dict:
    return evaluate_recall(ground_truth, proposals, offset=offset)["bins"]


def overlap(a, b, offset) -> float:
    width = max(min(a[2], b[2]) - max(a[0], b[0]) + offset, 0.0)
    height = max(min(a[3], b[3]) - max(a[1], b[1]) + offset, 0.0)
    return width * height / (area(a, offset) + area(b, offset) - width * height)


def area(box, offset) -> float:
    return (box[2] - box[0] + offset) * (box[3] - box[1] + offset)


def greedy(objects, boxes, offset) -> list[float]:
    """Overlaps of the pairs: the best covered ground truth takes the proposal that covers it best, then the next."""
    objects, boxes, pairs = list(objects), list(boxes), []
    while objects and boxes:
        best = [max(overlap(o, b, offset) for b in boxes) for o in objects]
        chosen = objects.pop(int(np.argmax(best)))
        cover = [overlap(chosen, b, offset) for b in boxes]
        boxes.pop(int(np.argmax(cover)))
        pairs.append(max(cover))
    return pairs + [0.0] * len(objects)


def loop(ground_truth, proposals, name, offset) -> tuple[int, list[float]]:
    """Number of ground truths of a bin, and their recall at each IoU."""
    low, high = SIDES[name]
    pairs = []
    for image, found in zip(ground_truth, proposals, strict=True):
        wanted = [box for box, ignored in zip(image.boxes, image.ignore, strict=True) if not ignored]
        wanted = [box for box in wanted if low**2 <= area(box, offset) < high**2]
        pairs += greedy(wanted, found.boxes.astype(np.float64), offset)
    points = np.arange(0.5, 0.95 + 1e-5, 0.05)
    return len(pairs), [sum(pair >= point for pair in pairs) / max(len(pairs), 1) for point in points]


@st.composite
def scenes(draw):
    """A few images of integer boxes in the proportions of the bins, so that equal overlaps are frequent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def boxes(count):
        corner, size = rng.integers(0, 3, (count, 2)) * 10, rng.choice([20, 24, 25, 30, 60, 150, 260, 400], (count, 1))
        return np.hstack([corner, corner + size + rng.integers(0, 3, (count, 2)) * 5]).astype(np.float64)

    objects, proposals = [], []
    for name in "abcd":
        n, m = rng.integers(0, 7), rng.integers(0, 15)
        objects.append(truth(boxes(n), rng.random(n) < 0.25, name))
        proposals.append(proposed(boxes(m), name))
    return objects, proposals


def test_by_hand():
    # 100 x 100 is covered by 3/4, 30 x 30 exactly, 400 x 400 not at all
    objects = [truth([square(100), square(30, 500)]), truth([square(400)], image_id="b")]
    proposals = [proposed([[0, 0, 75, 100], square(30, 500), square(10, 900)]), proposed([square(20)], "b")]
    metrics = evaluate_recall(objects, proposals, offset=0.0)
    assert (metrics["num_images"], metrics["num_proposals"], metrics["average_proposals"]) == (2, 4, 2.0)
    assert metrics["iou"] == [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    found = metrics["bins"]
    assert list(found) == list(SIDES) == ["all", *BINS]
    assert [row["share"] for row in found.values()] == [1, 0.5, 0.25, 0.25, 0, 0, 0]
    assert [row["num_gt"] for row in found.values()] == [3, 0, 1, 0, 1, 0, 1]
    assert found["100-200"]["recall"][:5] == [1] * 5
    assert found["100-200"]["recall"][6:] == [0] * 4
    assert found["25-50"]["recall"] == [1] * 10
    assert (found["25-50"]["AR"], found["300-inf"]["AR"], found["0-25"]["AR"]) == (1, 0, None)
    assert found["all"]["recall"][0] == pytest.approx(2 / 3)
    assert found["all"]["AR"] == pytest.approx(np.mean(found["all"]["recall"]))


def test_a_proposal_serves_one_ground_truth():
    assert match_one_to_one(np.array([[0.8, 0.6], [0.9, 0.0]])).tolist() == [0.6, 0.9]
    assert match_one_to_one(np.array([[0.8], [0.9]])).tolist() == [0, 0.9]
    assert match_one_to_one(np.zeros((2, 0))).tolist() == [0, 0]


def test_the_matching_is_greedy_not_the_best_in_sum():
    # 0.9 first leaves 0.1; the best sum were 0.8 + 0.8
    assert match_one_to_one(np.array([[0.9, 0.8], [0.8, 0.1]])).tolist() == [0.9, 0.1]


def test_each_bin_is_matched_by_itself():
    # one proposal between two ground truths of different bins: it serves the larger one in all, each in its bin
    objects, proposals = [truth([square(24), square(30)])], [proposed([square(28)])]
    found = bins(objects, proposals)
    assert [found[name]["recall"][0] for name in ("all", "0-25", "25-50")] == [0.5, 1, 1]


def test_the_offset_counts_for_areas_and_overlaps():
    # inclusive 24..0 is 25 pixels wide; 10 x 10 in 10 x 20 is exactly one half, continuous 9 x 9 in 9 x 19 is less
    assert bins([truth([square(24)])], [proposed([])], offset=1.0)["25-50"]["num_gt"] == 1
    assert bins([truth([square(24)])], [proposed([])], offset=0.0)["0-25"]["num_gt"] == 1
    objects, proposals = [truth([[0, 0, 9, 19]])], [proposed([square(9)])]
    assert bins(objects, proposals, offset=1.0)["all"]["recall"] == [1] + [0] * 9
    assert bins(objects, proposals, offset=0.0)["all"]["AR"] == 0


def test_ignored_ground_truth_is_left_out():
    row = bins([truth([square(50), square(60, 200)], ignore=[False, True])], [proposed([square(50)])])["all"]
    assert (row["num_gt"], row["AR"]) == (1, 1)


def test_proposals_are_found_by_image_id_or_by_order():
    objects = [truth([square(50)]), truth([square(60)], image_id="b"), truth([square(70)], image_id="c")]
    named = [proposed([square(60)], "b"), proposed([square(50)], "a")]
    arrays = [square(50), square(60), []]
    arrays = [np.array(boxes, np.float32).reshape(-1, 4) for boxes in arrays]
    assert evaluate_recall(objects, named, offset=0.0) == evaluate_recall(objects, arrays, offset=0.0)
    assert bins(objects, named)["all"]["AR"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "proposals, message",
    [
        ([proposed([], "z")], "image 'z' is not in the set"),
        ([proposed([]), proposed([])], "comes twice"),
        ([proposed([[0, 0, np.nan, 1]])], "image 'a' has boxes"),
        ([np.zeros((3, 5))], "shape"),
        ([np.zeros((3, 4)), np.zeros((3, 4))], "2 arrays"),
        ([np.zeros((3, 4)), proposed([])], "1 arrays"),
    ],
)
def test_proposals_that_cannot_be_are_named(proposals, message):
    with pytest.raises(ValueError, match=message):
        evaluate_recall([truth([square(10)])], proposals, offset=0.0)


def test_no_proposals_recall_nothing_and_no_images_are_an_error():
    row = bins([truth([square(10)])], [])["all"]
    assert (row["share"], row["AR"]) == (None, 0)
    with pytest.raises(ValueError, match="no images"):
        evaluate_recall([], [], offset=0.0)


def test_the_table_takes_what_is_returned():
    text = format_recall(evaluate_recall([truth([square(10)])], [proposed([square(10)])], offset=0.0)).splitlines()
    assert [line.split()[0] for line in text[2:]] == list(SIDES)
    assert [line.endswith("no ground truth") for line in text[2:]] == [False, False] + [True] * 5


@given(scene=scenes(), offset=st.sampled_from([0.0, 1.0]))
def test_agrees_with_a_plain_loop(scene, offset):
    for name, row in bins(*scene, offset=offset).items():
        count, recall = loop(*scene, name=name, offset=offset)
        assert row["num_gt"] == count
        if count:
            np.testing.assert_allclose(row["recall"], recall, atol=1e-12)


@given(scene=scenes(), offset=st.sampled_from([0.0, 1.0]))
def test_recall_falls_with_the_threshold_and_bins_add_up(scene, offset):
    rows = bins(*scene, offset=offset)
    assert all(np.all(np.diff(row["recall"]) <= 0) for row in rows.values() if row["num_gt"])
    assert rows["all"]["num_gt"] == sum(rows[name]["num_gt"] for name in BINS)
    if rows["all"]["share"] is not None:
        assert sum(rows[name]["share"] for name in BINS) == pytest.approx(1)


@given(scene=scenes(), offset=st.sampled_from([0.0, 1.0]))
def test_perfect_proposals_recall_everything(scene, offset):
    perfect = [np.vstack([found.boxes, image.boxes[::-1]]) for image, found in zip(*scene, strict=True)]
    rows = bins(scene[0], perfect, offset)
    assert all(row["AR"] == 1 for row in rows.values() if row["num_gt"])
