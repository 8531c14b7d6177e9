import numpy as np
import pytest

from rcnn.benchmark.evaluation import make_set, open_ours, open_pycocotools
from rcnn.benchmark.settings import CLASSES, DETECTIONS
from rcnn.evaluation.coco import NUMBERS
from rcnn.evaluation.results import DetectionFile
from tests.benchmark.small import settings


def test_both_sides_find_the_same_numbers() -> None:
    ours = open_ours(settings("eval", images=30))["COCO"].run()
    theirs = open_pycocotools(settings("eval", images=30))["COCO"]
    assert isinstance(ours, dict)
    for _ in range(2):  # it writes into what it is given
        assert theirs.run() == pytest.approx({name: ours[name] for name in NUMBERS}, abs=1e-9)
    assert 0.01 < ours["AP"] < 0.9


def test_what_is_around_the_metrics() -> None:
    tasks = open_ours(settings("eval", images=7))
    assert list(tasks) == ["COCO", "VOC", "write detections.json", "read detections.json"]
    assert {task.images for task in tasks.values()} == {7}
    tasks["write detections.json"].run()
    read = tasks["read detections.json"].run()
    assert isinstance(read, DetectionFile) and read.classes == CLASSES
    for mine, found in zip(make_set(7).found, read.detections, strict=True):
        assert found.image_id == mine.image_id and np.array_equal(found.labels, mine.labels)
        assert np.allclose(found.boxes, mine.boxes, atol=1e-4) and np.array_equal(
            found.scores.astype("f4"), mine.scores
        )


def test_a_made_set_is_one_that_could_be() -> None:
    made = make_set(40)
    assert {len(image.labels) for image in made.found} == {DETECTIONS}
    assert 0 in {len(image.labels) for image in made.truth} and len({len(image.labels) for image in made.truth}) > 5
    boxes = np.concatenate([image.boxes for image in made.found])
    assert (boxes[:, 2:] > boxes[:, :2]).all()
