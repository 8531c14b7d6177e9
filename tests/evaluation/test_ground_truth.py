"""Annotations for evaluation, and the pairing of images with their detections."""

import json
from pathlib import Path

import numpy as np
import pytest

from rcnn.evaluation.ground_truth import AnnotatedImage, no_detections, pair_images, read_coco_ground_truth
from rcnn.evaluation.results import ImageDetections

DOCUMENT = {
    "images": [{"id": 7}, {"id": 3}],
    "categories": [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10.1, 20.2, 30.3, 40.4], "area": 600.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4], "area": 9, "iscrowd": 1},
    ],
}


def written(folder: Path, **changes) -> Path:
    path = folder / "instances.json"
    path.write_text(json.dumps(DOCUMENT | changes))
    return path


def image(image_id: str | int) -> AnnotatedImage:
    none = np.zeros(0, np.bool_)
    return AnnotatedImage(image_id, np.zeros((0, 4)), np.zeros(0, np.int64), none, none, np.zeros(0))


def found(image_id: str | int, *, label: int = 1, score: float = 0.5, right: float = 9.0) -> ImageDetections:
    return ImageDetections(image_id, np.array([[0, 0, right, 9]]), np.array([score]), np.array([label]))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_coco_annotations_are_read_as_they_stand(tmp_path, offset):
    first, second = read_coco_ground_truth(written(tmp_path), ["person", "dog"], offset=offset)
    assert (first.image_id, second.image_id) == (7, 3)
    right_bottom = [10.1 + (30.3 - offset), 20.2 + (40.4 - offset)]
    np.testing.assert_array_equal(first.boxes, [[10.1, 20.2, *right_bottom], [1, 2, 4 - offset, 6 - offset]])
    assert first.labels.tolist() == [1, 2]
    assert first.crowd.tolist() == first.ignore.tolist() == [False, True]
    assert first.areas.tolist() == [600.5, 9]
    assert second.boxes.shape == (0, 4)


def test_objects_of_other_classes_are_left_out(tmp_path):
    first, _ = read_coco_ground_truth(written(tmp_path), ["dog"], offset=0.0)
    assert first.labels.tolist() == [1]
    assert first.areas.tolist() == [9]


def test_without_an_area_it_is_the_boxs(tmp_path):
    annotation = {"id": 1, "image_id": 3, "category_id": 18, "bbox": [0, 0, 2, 3]}
    *_, image = read_coco_ground_truth(written(tmp_path, annotations=[annotation]), ["dog"], offset=0.0)
    assert (image.areas.tolist(), image.crowd.tolist()) == ([6], [False])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"categories": "dog"}, "no list 'categories'"),
        ({"annotations": [{"id": 5, "image_id": 8, "category_id": 1, "bbox": [0, 0, 1, 1]}]}, "annotation 5.*image 8"),
        ({"annotations": [{"id": 5, "image_id": 7, "category_id": 1, "bbox": [0, 0, 1]}]}, "annotation 5: bbox"),
        ({"categories": [{"id": 1, "name": "Person"}]}, r"none of the classes \(person, dog\).*\(Person\)"),
    ],
)
def test_bad_annotations_are_named(tmp_path, changes, message):
    path = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_coco_ground_truth(path, ["person", "dog"], offset=0.0)
    assert str(path) in str(error.value)


def test_a_broken_or_missing_file_is_named(tmp_path):
    path = tmp_path / "broken.json"
    with pytest.raises(ValueError, match=r"broken\.json: no such file"):
        read_coco_ground_truth(path, ["dog"], offset=0.0)
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match=r"broken\.json: not valid JSON"):
        read_coco_ground_truth(path, ["dog"], offset=0.0)


def test_images_are_paired_by_id_in_the_sets_order():
    pairs = list(pair_images([image("b"), image("a"), image("c")], [found("c"), found("b")], 1))
    assert [(truth.image_id, there.image_id, len(there.scores)) for truth, there in pairs] == [
        ("b", "b", 1),
        ("a", "a", 0),
        ("c", "c", 1),
    ]


@pytest.mark.parametrize(
    ("detections", "message"),
    [
        ([found("a"), found("a")], "image 'a' comes twice"),
        ([found("x")], r"image 'x' is not in the set \(a\)"),
        ([found("a", label=3)], "image 'a' has label 3, but there are 2 classes"),
        ([found("a", label=0)], "image 'a' has label 0"),
        ([found("a", score=np.nan)], "image 'a' has a box or score that is not a finite number"),
        ([found("a", right=np.inf)], "not a finite number"),
    ],
)
def test_detections_that_cannot_be_are_refused(detections, message):
    with pytest.raises(ValueError, match=message):
        list(pair_images([image("a")], detections, 2))


def test_a_set_without_images_is_refused():
    with pytest.raises(ValueError, match=r"no images; .*--data\.test"):
        list(pair_images([], [], 1))


def test_no_detections_is_empty_but_well_formed():
    assert no_detections(4).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "changes",
    [
        {"images": [7]},
        {"categories": [{"id": 1}]},
        {"annotations": [{"id": 1, "image_id": [], "category_id": 1}]},
        {"annotations": ["a"]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, "4"]}]},
        {"annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "area": []}]},
    ],
)
def test_entries_of_the_wrong_kind_are_refused_by_name(tmp_path: Path, changes: dict) -> None:
    document = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "dog"}], "annotations": []}
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(document | changes))
    with pytest.raises(ValueError, match=r"odd\.json: "):
        read_coco_ground_truth(path, ["dog"], offset=0.0)
