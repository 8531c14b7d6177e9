"""VOC's average precision: by hand, against a plain loop, and what must always hold."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rcnn.evaluation.ground_truth import AnnotatedImage
from rcnn.evaluation.results import ImageDetections
from rcnn.evaluation.voc import (
    average_precision_11_points,
    average_precision_area,
    evaluate_voc,
    voc_curves,
    voc_metrics,
)

HERE, THERE, AWAY = [0, 0, 9, 9], [20, 0, 29, 9], [50, 50, 59, 59]


def truth(boxes, labels=None, difficult=None, image_id="a") -> AnnotatedImage:
    boxes = np.array(boxes, np.float64).reshape(-1, 4)
    labels = np.ones(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    difficult = np.zeros(len(boxes), np.bool_) if difficult is None else np.array(difficult, np.bool_)
    return AnnotatedImage(image_id, boxes, labels, difficult, np.zeros(len(boxes), np.bool_), np.zeros(len(boxes)))


def found(boxes, scores, labels=None, image_id="a") -> ImageDetections:
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    labels = np.ones(len(boxes), np.int64) if labels is None else np.array(labels, np.int64)
    return ImageDetections(image_id, boxes, np.array(scores, np.float32), labels)


def average(ground_truth, detections, metric="voc_area", **options) -> float | None:
    return evaluate_voc(ground_truth, detections, ["cat"], metric=metric, **options)["mAP"]


def loop(ground_truth, detections, label, iou):
    """Recall and precision of a class, one detection after the other."""
    objects = {
        g.image_id: list(zip(g.boxes[g.labels == label], g.ignore[g.labels == label], strict=True))
        for g in ground_truth
    }
    ranked = [(d.scores[i], d.image_id, d.boxes[i]) for d in detections for i in np.flatnonzero(d.labels == label)]
    ranked.sort(key=lambda row: -row[0])
    taken, right, points = set(), 0, []
    total = sum(not difficult for rows in objects.values() for _, difficult in rows)
    for _, image_id, box in ranked:
        best, place = -1.0, None
        for index, (other, _) in enumerate(objects[image_id]):
            width = min(box[2], other[2]) - max(box[0], other[0]) + 1.0
            height = min(box[3], other[3]) - max(box[1], other[1]) + 1.0
            shared = max(width, 0.0) * max(height, 0.0)
            areas = [(b[2] - b[0] + 1.0) * (b[3] - b[1] + 1.0) for b in (box.astype(np.float64), other)]
            if shared / (sum(areas) - shared) > best:
                best, place = shared / (sum(areas) - shared), index
        if best > iou and objects[image_id][place][1]:
            continue
        if best > iou and (image_id, place) not in taken:
            taken.add((image_id, place))
            right += 1
        points.append((right / max(total, 1), right / (len(points) + 1)))
    return np.array(points).reshape(-1, 2).T


def test_by_hand():
    # found, wrong, found again, found: precision 1, 1/2, 1/3, 1/2 at recall 1/2, 1/2, 1/2, 1
    objects, detections = truth([HERE, THERE]), found([HERE, AWAY, HERE, THERE], [0.9, 0.8, 0.7, 0.6])
    curve = voc_curves([objects], [detections], ["cat"])["cat"]
    np.testing.assert_allclose(curve.recall, [0.5, 0.5, 0.5, 1])
    np.testing.assert_allclose(curve.precision, [1, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(curve.scores, [0.9, 0.8, 0.7, 0.6])
    assert (curve.num_gt, curve.num_detections) == (2, 4)
    assert average([objects], [detections], "voc_area") == pytest.approx(0.5 * 1 + 0.5 * 0.5)
    assert average([objects], [detections], "voc07_11point") == pytest.approx((6 * 1 + 5 * 0.5) / 11)


def test_metrics_are_what_the_command_line_promises():
    metrics = evaluate_voc([truth([HERE], [2])], [found([HERE], [0.5], [2])], ["cat", "dog"], metric="voc07_11point")
    assert metrics == {
        "metric": "voc07_11point",
        "iou": 0.5,
        "mAP": 1.0,
        "AP": {"cat": None, "dog": 1.0},
        "num_gt": {"cat": 0, "dog": 1},
        "num_detections": {"cat": 0, "dog": 1},
    }


def test_detections_are_judged_within_their_image_and_class():
    objects = [truth([HERE], [1], image_id="a"), truth([THERE], [2], image_id="b")]
    detections = [found([HERE, THERE], [0.9, 0.8], [2, 1], "a"), found([HERE, THERE], [0.7, 0.6], [1, 2], "b")]
    curves = voc_curves(objects, detections, ["cat", "dog"])
    assert [curve.precision.tolist() for curve in curves.values()] == [[0, 0], [0, 0.5]]


def test_pixels_are_inclusive():
    # 10 x 10 in 10 x 19: 100 / 190 > 1/2; continuous 81 / 162 is not more than 1/2
    objects, detections = [truth([[0, 0, 9, 18]])], [found([HERE], [1])]
    assert average(objects, detections) == 1.0
    assert average(objects, detections, offset=0.0) == 0.0


def test_an_overlap_of_exactly_the_limit_is_not_enough():
    objects, detections = [truth([[0, 0, 9, 19]])], [found([HERE], [1])]
    assert average(objects, detections) == 0.0
    assert average(objects, detections, iou=0.49) == 1.0


def test_difficult_objects_are_neither_to_be_found_nor_wrong_to_find():
    objects = truth([HERE, THERE], difficult=[True, False])
    detections = found([HERE, HERE, THERE], [0.9, 0.8, 0.7])
    curve = voc_curves([objects], [detections], ["cat"])["cat"]
    assert (curve.num_gt, curve.num_detections) == (1, 3)
    assert (curve.recall.tolist(), curve.precision.tolist()) == ([1.0], [1.0])


def test_only_difficult_objects_are_no_ground_truth():
    assert average([truth([HERE], difficult=[True])], [found([HERE, AWAY], [0.9, 0.8])]) is None


def test_a_detection_belongs_to_the_object_it_overlaps_most():
    # the second overlaps the taken object most and does not fall back on the other
    objects = truth([[0, 0, 9, 9], [0, 2, 9, 11]])
    detections = found([[0, 0, 9, 9], [0, 0, 9, 10]], [0.9, 0.8])
    assert voc_curves([objects], [detections], ["cat"])["cat"].recall.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("box", [[9, 9, 0, 0], [0, 9, 9, 0], [4, 4, 2, 40]])
def test_inside_out_boxes_find_nothing(box):
    curve = voc_curves([truth([HERE])], [found([box], [0.9])], ["cat"])["cat"]
    assert curve.precision.tolist() == [0]


def test_nothing_found_is_zero_and_no_images_an_error():
    assert average([truth([HERE])], []) == 0.0
    assert average([truth([HERE])], [found([], [])], "voc07_11point") == 0.0
    with pytest.raises(ValueError, match="no images"):
        average([], [])


def test_the_eleven_points_are_those_of_the_devkit():
    # the fourth is 0.30000000000000004, so a recall of 3/10 does not reach it
    recall, precision = np.array([0.1, 0.2, 0.3]), np.array([1.0, 1.0, 1.0])
    assert average_precision_11_points(recall, precision) == pytest.approx(3 / 11)
    assert average_precision_area(recall, precision) == pytest.approx(0.3)


def test_metrics_can_be_taken_from_curves_at_another_overlap():
    objects, detections = [truth([[0, 0, 9, 18]])], [found([HERE], [1])]
    curves = voc_curves(objects, detections, ["cat"], iou=0.75)
    assert voc_metrics(curves, metric="voc_area", iou=0.75)["mAP"] == 0.0


@st.composite
def scenes(draw):
    """A few images of small integer boxes, so that overlaps and equal scores are frequent."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))

    def boxes(count):
        corner = rng.integers(0, 12, (count, 2))
        return np.hstack([corner, corner + rng.integers(3, 10, (count, 2))]).astype(np.float64)

    objects, detections = [], []
    for name in "abcd":
        n, m = rng.integers(0, 5), rng.integers(0, 12)
        objects.append(truth(boxes(n), rng.integers(1, 4, n), rng.random(n) < 0.25, name))
        detections.append(found(boxes(m), rng.integers(0, 8, m) / 8, rng.integers(1, 4, m), name))
    return objects, detections


@given(scene=scenes(), iou=st.sampled_from([0.3, 0.5, 0.7]))
def test_agrees_with_a_plain_loop(scene, iou):
    curves = voc_curves(*scene, ["cat", "dog", "cow"], iou=iou)
    for label, curve in enumerate(curves.values(), start=1):
        recall, precision = loop(*scene, label, iou)
        np.testing.assert_array_equal(curve.recall, recall)
        np.testing.assert_array_equal(curve.precision, precision)


@given(scene=scenes(), metric=st.sampled_from(["voc07_11point", "voc_area"]))
def test_perfect_detections_score_one_and_weak_mistakes_cost_nothing(scene, metric):
    # no two boxes of a scene's class overlap each other more than themselves, so each finds its own object
    objects = [g._replace(boxes=g.boxes + 40 * np.arange(len(g.boxes))[:, None]) for g in scene[0]]
    perfect = [found(g.boxes, np.ones(len(g.boxes)), g.labels, g.image_id) for g in objects]
    noisy = [
        found(np.vstack([d.boxes, [[900, 900, 909, 909]]]), [*d.scores, 0.1], [*d.labels, 1], d.image_id)
        for d in perfect
    ]
    for detections in (perfect, noisy):
        metrics = evaluate_voc(objects, detections, ["cat", "dog", "cow"], metric=metric)
        assert all(value is None or value == pytest.approx(1) for value in metrics["AP"].values())


@given(scene=scenes(), seed=st.integers(0, 99))
def test_the_order_of_images_does_not_matter_when_scores_differ(scene, seed):
    rng = np.random.default_rng(seed)
    objects, detections = scene
    detections = [d._replace(scores=rng.random(len(d.scores))) for d in detections]
    shuffled = [detections[i] for i in rng.permutation(len(detections))], [objects[i] for i in rng.permutation(4)]
    once = evaluate_voc(objects, detections, ["cat", "dog", "cow"], metric="voc_area")
    again = evaluate_voc(shuffled[1], shuffled[0], ["cat", "dog", "cow"], metric="voc_area")
    assert again["AP"] == pytest.approx(once["AP"], nan_ok=True)
