"""COCO's numbers by hand; agreement with pycocotools on real data is in tests/parity."""

import numpy as np
import pytest

from rcnn.evaluation.coco import NUMBERS, _sides, evaluate_coco
from rcnn.evaluation.ground_truth import AnnotatedImage
from rcnn.evaluation.results import ImageDetections

MEDIUM, OTHER = [0, 0, 50, 50], [100, 100, 150, 150]


def truth(boxes, labels=None, crowd=None, ignore=None, areas=None, image_id=1) -> AnnotatedImage:
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    none = np.zeros(len(boxes), np.bool_)
    return AnnotatedImage(
        image_id,
        boxes,
        np.ones(len(boxes), np.int64) if labels is None else np.array(labels, np.int64),
        none if ignore is None else np.array(ignore, np.bool_),
        none if crowd is None else np.array(crowd, np.bool_),
        (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) if areas is None else np.array(areas, np.float64),
    )


def found(boxes, scores, labels=None, image_id=1) -> ImageDetections:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    return ImageDetections(image_id, boxes, np.array(scores, np.float32), labels)


def evaluate(objects, detections, classes=("cat",), offset=0.0):
    return evaluate_coco(objects, detections, classes, offset=offset)


def test_by_hand():
    # IoU 0.8 is enough for seven of the ten thresholds, .50 to .80
    metrics = evaluate([truth([MEDIUM])], [found([[0, 0, 50, 40]], [0.9])])
    assert metrics["AP"] == pytest.approx(0.7)
    assert (metrics["AP50"], metrics["AP75"]) == (pytest.approx(1), pytest.approx(1))
    assert (metrics["AR1"], metrics["AR100"], metrics["ARm"]) == (pytest.approx(0.7),) * 3
    assert metrics["AP_by_class"] == {"cat": pytest.approx(0.7)}
    assert (metrics["num_gt"], metrics["num_detections"]) == ({"cat": 1}, {"cat": 1})


def test_sizes_that_do_not_occur_are_none_and_said_so():
    metrics = evaluate([truth([MEDIUM])], [found([MEDIUM], [0.9])])
    assert (metrics["APs"], metrics["ARs"], metrics["APl"], metrics["ARl"]) == (None,) * 4
    assert metrics["reasons"]["APs"] == metrics["reasons"]["ARs"] == "no small objects in this set"
    assert metrics["reasons"]["ARl"] == "no large objects in this set"
    assert "APm" not in metrics["reasons"]


def test_a_class_without_objects_is_none_and_not_in_the_mean():
    metrics = evaluate([truth([MEDIUM])], [found([MEDIUM, OTHER], [0.9, 0.8], [1, 2])], ("cat", "dog"))
    assert metrics["AP_by_class"] == {"cat": pytest.approx(1), "dog": None}
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["num_detections"] == {"cat": 1, "dog": 1}


@pytest.mark.parametrize("objects", [truth([]), truth([MEDIUM], crowd=[True])])
def test_without_ground_truth_every_number_has_a_reason(objects):
    metrics = evaluate([objects], [found([MEDIUM], [0.9])])
    assert [metrics[key] for key in NUMBERS] == [None] * 12
    assert metrics["reasons"] == dict.fromkeys(NUMBERS, "no ground truth in this set")


def test_nothing_found_is_zero():
    metrics = evaluate([truth([MEDIUM])], [])
    assert (metrics["AP"], metrics["AR100"], metrics["APs"]) == (0, 0, None)


def test_the_annotated_area_decides_the_size():
    metrics = evaluate([truth([MEDIUM], areas=[1000])], [found([MEDIUM], [0.9])])
    assert (metrics["APs"], metrics["APm"]) == (pytest.approx(1), None)


@pytest.mark.parametrize("kind", ["crowd", "ignore"])
def test_many_detections_may_lie_in_a_crowd_or_difficult_object(kind):
    objects = truth([MEDIUM, OTHER], **{kind: [True, False]})
    inside = [[0, 0, 20, 20], [20, 20, 50, 50]]
    metrics = evaluate([objects], [found([*inside, OTHER], [0.9, 0.8, 0.7])])
    assert metrics["AP"] == pytest.approx(1)
    assert metrics["num_gt"] == {"cat": 1}


def test_inclusive_boxes_are_a_pixel_wider():
    # as x, y, width, height both are 0, 0, 10, 10 and 0, 0, 10, 20
    boxes = [0, 0, 9, 9], [0, 0, 9, 19]
    assert evaluate([truth([boxes[1]])], [found([boxes[0]], [1])], offset=1.0)["AP50"] == pytest.approx(1)
    assert evaluate([truth([boxes[1]])], [found([boxes[0]], [1])], offset=0.0)["AP50"] == 0


@pytest.mark.parametrize("offset", [0.0, 1.0])
@pytest.mark.parametrize("digits", [1, 2, 6])
def test_widths_are_those_of_the_file_to_the_last_bit(offset, digits):
    # 0.1 + 0.7 - 0.1 is not 0.7, and at an overlap of exactly 1/2 the last bit decides
    sides = np.random.default_rng(0).uniform(0, 1000, (1000, 4)).round(digits)
    corners = np.hstack([sides[:, :2], sides[:, :2] + sides[:, 2:] - offset])
    assert (corners[:, 2:] - corners[:, :2] + offset != sides[:, 2:]).any()
    np.testing.assert_array_equal(_sides(corners, offset), sides)


def test_equal_scores_rank_by_image_id_as_in_pycocotools():
    right = [truth([MEDIUM], image_id=2), truth([OTHER], image_id=10)]
    detections = [found([OTHER], [0.5], image_id=10), found([OTHER], [0.5], image_id=2)]
    # image 2 comes first and its detection is wrong: precision 0, then 1/2 at a recall of 1/2, 51 of 101 points
    for order in (1, -1):
        assert evaluate(right[::order], detections)["AP50"] == pytest.approx(0.5 * 51 / 101)
