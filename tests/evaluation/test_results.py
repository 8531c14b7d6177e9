"""detections.json and comp4 files: what is written comes back, and what is wrong is named."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rcnn.evaluation.results import (
    ImageDetections,
    ImageInfo,
    check_detections,
    first_few,
    read_comp4,
    read_detections,
    write_comp4,
    write_detections,
    write_metrics,
)

CLASSES = ("cat", "traffic light")
IMAGES = [ImageInfo("000001", "000001.jpg", 375, 500), ImageInfo("000002", "000002.jpg", 300, 400)]
GOOD = {"image_id": "000001", "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.5}


def detections(boxes, scores, labels, image_id="000001", dtype=np.float32) -> ImageDetections:
    return ImageDetections(
        image_id, np.array(boxes, dtype).reshape(-1, 4), np.array(scores, dtype), np.array(labels, np.int64)
    )


def assert_same(a: ImageDetections, b: ImageDetections, tolerance: float = 0.0) -> None:
    assert a.image_id == b.image_id
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_allclose(a.boxes, b.boxes, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.scores, b.scores, rtol=0, atol=tolerance)


def test_detections_json_is_coco_results_with_a_frame(tmp_path):
    path = tmp_path / "detections.json"
    found = detections([[10, 20, 29, 59.5], [0, 0, 0, 0]], [0.75, 0.125], [2, 1])
    write_detections(path, CLASSES, IMAGES, [found], offset=1.0, category_ids=[17, 10])
    document = json.loads(path.read_text())
    assert document["classes"] == ["cat", "traffic light"]
    assert document["category_ids"] == [17, 10]
    assert document["images"][0] == {"id": "000001", "file_name": "000001.jpg", "height": 375, "width": 500}
    assert document["detections"] == [
        {"image_id": "000001", "category_id": 10, "bbox": [10, 20, 20, 40.5], "score": 0.75},
        {"image_id": "000001", "category_id": 17, "bbox": [0, 0, 1, 1], "score": 0.125},
    ]


def test_category_ids_are_the_labels_by_default(tmp_path):
    path = tmp_path / "detections.json"
    write_detections(path, CLASSES, IMAGES, [detections([[0, 0, 1, 1]], [1], [2])], offset=0.0)
    assert json.loads(path.read_text())["detections"][0]["category_id"] == 2


boxes_and_scores = st.integers(0, 5).flatmap(
    lambda n: st.tuples(
        hnp.arrays(np.float32, (n, 2), elements=st.floats(0, 2000, width=32)),
        hnp.arrays(np.float32, (n, 2), elements=st.floats(1, 2000, width=32)),
        hnp.arrays(np.float32, n, elements=st.floats(0, 1, width=32)),
    )
)


@given(drawn=boxes_and_scores, offset=st.sampled_from([0.0, 1.0]), comp4=st.booleans())
def test_files_give_back_what_was_written(tmp_path_factory, drawn, offset, comp4):
    corner, size, scores = drawn
    found = detections(np.hstack([corner, corner + size]), scores, np.arange(len(scores)) % 2 + 1)
    found = found._replace(
        **{key: getattr(found, key)[np.argsort(found.labels, kind="stable")] for key in ("boxes", "scores", "labels")}
    )
    folder = tmp_path_factory.mktemp("round")
    ids = [image.image_id for image in IMAGES]
    if comp4:
        write_comp4(folder, "2007_test", CLASSES, [found], offset=offset)
        back = read_comp4(folder, CLASSES, offset=offset, image_ids=ids)
    else:
        write_detections(folder / "d.json", CLASSES, IMAGES, [found], offset=offset)
        back = read_detections(folder / "d.json", offset=offset).detections
    assert_same(back[0], found, tolerance=1e-5)
    assert_same(back[1], detections([], [], [], "000002"))
    if not comp4:  # equal scores stay equal, different ones different: the ranking is the same
        np.testing.assert_array_equal(back[0].scores.astype(np.float32), found.scores)


def test_coordinates_come_back_to_the_last_bit(tmp_path):
    corners = np.random.default_rng(0).uniform(1, 1000, (500, 4)).astype(np.float32)
    boxes = np.hstack([np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])])
    found = detections(boxes, np.ones(500), np.ones(500, np.int64))
    for offset in (0.0, 1.0):
        write_detections(tmp_path / "d.json", CLASSES, IMAGES, [found], offset=offset)
        back = read_detections(tmp_path / "d.json", offset=offset).detections[0]
        np.testing.assert_array_equal(back.boxes.astype(np.float32), boxes)


def test_inside_out_boxes_of_real_detectors_are_read(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"classes": CLASSES, "images": [], "detections": [GOOD | {"bbox": [5, 5, 3, -2]}]}))
    assert read_detections(path, offset=0.0).detections[0].boxes.tolist() == [[5, 5, 8, 3]]


def test_labels_follow_the_data_sets_order_of_classes(tmp_path):
    path = tmp_path / "d.json"
    write_detections(path, CLASSES, IMAGES, [detections([[0, 0, 1, 1]], [1], [2])], offset=0.0)
    back = read_detections(path, offset=0.0, classes=["traffic light", "dog"])
    assert back.classes == ("traffic light", "dog")
    assert back.detections[0].labels.tolist() == [1]


def test_ids_take_the_data_sets_type(tmp_path):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"classes": CLASSES, "images": [], "detections": [GOOD | {"image_id": "12"}]}))
    back = read_detections(path, offset=0.0, image_ids=[11, 12]).detections
    assert [image.image_id for image in back] == [11, 12]
    assert [len(image.scores) for image in back] == [0, 1]


def test_a_bare_result_list_needs_the_category_ids(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD | {"category_id": 90}]))
    back = read_detections(path, offset=0.0, classes=CLASSES, category_ids=[90, 5])
    assert back.detections[0].labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"results\.json: a bare list.*category_ids"):
        read_detections(path, offset=0.0)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"bbox": [1, 2, 3]}, r"detections\[1\]: bbox \[1, 2, 3\]"),
        ({"bbox": [1, 2, None, 4]}, r"detections\[1\]: bbox"),
        ({"score": "high"}, r"detections\[1\]: score 'high'"),
        ({"score": float("nan")}, r"detections\[1\]: score nan"),
        ({"category_id": 3}, r"detections\[1\]: category_id 3 .*\(1, 2\)"),
        ({"category_id": [1]}, r"detections\[1\]: category_id \[1\]"),
        (
            {"category_id": 1},
            r"detections\[1\]: class 'cat' is none of the data set's \(traffic light\).*--data\.classes",
        ),
        ({"image_id": "000009"}, r"detections\[1\]: image '000009' is not in the set \(000001\).*--data\.test"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, entry, message):
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"classes": CLASSES, "images": [], "detections": [GOOD, GOOD | entry]}))
    with pytest.raises(ValueError, match=message) as error:
        read_detections(path, offset=0.0, classes=["traffic light"], image_ids=["000001"])
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "expected an object with the lists"),
        ('{"classes": ["a", "a"], "detections": []}', "'classes' must be a list of different names"),
        ('{"classes": ["a"], "category_ids": [1, 2], "detections": []}', "'category_ids' must be"),
        ('{"classes": ["a"], "detections": [7]}', r"detections\[0\]: expected image_id"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, text, message):
    path = tmp_path / "d.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_detections(path, offset=0.0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"none\.json: no such file"):
        read_detections(tmp_path / "none.json", offset=0.0)


def test_images_the_file_does_not_cover_are_reported(tmp_path, caplog):
    path = tmp_path / "d.json"
    write_detections(path, CLASSES, IMAGES, [], offset=0.0)
    with caplog.at_level(logging.WARNING):
        read_detections(path, offset=0.0, image_ids=["000001", "000002", "000003"])
    assert "covers 2 of the 3 images" in caplog.text


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "d.json"
    write_detections(path, CLASSES, IMAGES, [], offset=0.0)
    before = path.read_text()
    with pytest.raises(ValueError, match="finite"):
        write_detections(path, CLASSES, IMAGES, [detections([[0, 0, np.nan, 1]], [1], [1])], offset=0.0)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("offset", "right"), [(1.0, "31.000000 41.000000"), (0.0, "30.000000 40.000000")])
def test_comp4_counts_from_one_and_includes_the_last_pixel(tmp_path, offset, right):
    found = detections([[9, 19, 30, 40]], [0.25], [2])
    paths = write_comp4(tmp_path, "test", CLASSES, [found], offset=offset)
    assert [path.name for path in paths] == ["comp4_det_test_cat.txt", "comp4_det_test_traffic light.txt"]
    assert paths[0].read_text() == ""
    assert paths[1].read_text() == f"000001 0.250000000 10.000000 20.000000 {right}\n"


def test_comp4_files_of_other_tools_are_read(tmp_path):
    (tmp_path / "comp4_det_val_2012_cat.txt").write_text("img_1 0.5 1 1 10 20\n\nimg_2 1e-3 2.5 3 4 5\n")
    (tmp_path / "comp4_det_val_2012_big_cat.txt").write_text("img_1 0.25 1 1 2 2\n")
    first, second = read_comp4(tmp_path, ["cat", "big_cat"], offset=1.0)
    assert_same(first, detections([[0, 0, 9, 19], [0, 0, 1, 1]], [0.5, 0.25], [1, 2], "img_1"))
    assert_same(second, detections([[1.5, 2, 3, 4]], [0.001], [1], "img_2", np.float64))


@pytest.mark.parametrize("line", ["000001 0.5 1 2 3", "000001 0.5 1 2 3 x", "000001", "000001 nan 1 2 3 4"])
def test_a_wrong_comp4_line_is_named(tmp_path, line):
    path = tmp_path / "comp4_det_test_cat.txt"
    path.write_text(f"000001 0.5 1 2 3 4\n{line}\n")
    with pytest.raises(ValueError, match=f"{path.name}: line 2: .*{line}"):
        read_comp4(tmp_path, ["cat"], offset=1.0)


def test_an_unknown_image_in_a_comp4_file_is_named(tmp_path):
    (tmp_path / "comp4_det_test_cat.txt").write_text("000009 0.5 1 2 3 4\n")
    with pytest.raises(ValueError, match=r"cat\.txt: line 1: image '000009' is not in the set \(000001, 000002\)"):
        read_comp4(tmp_path, ["cat"], offset=1.0, image_ids=["000001", "000002"])


def test_comp4_files_must_be_one_for_each_class(tmp_path):
    (tmp_path / "comp4_det_test_cat.txt").touch()
    with pytest.raises(ValueError, match=r"no file comp4_det_SET_dog\.txt.*add an empty one"):
        read_comp4(tmp_path, ["cat", "dog"], offset=1.0)
    (tmp_path / "comp4_det_test_cow.txt").touch()
    with pytest.raises(ValueError, match=r"comp4_det_test_cow\.txt: its name ends in none of the classes \(cat\)"):
        read_comp4(tmp_path, ["cat"], offset=1.0)
    with pytest.raises(ValueError, match="no such folder"):
        read_comp4(tmp_path / "none", ["cat"], offset=1.0)


def test_comp4_files_of_two_sets_need_a_choice(tmp_path):
    (tmp_path / "comp4_det_test_cat.txt").write_text("a 0.5 1 1 2 2\n")
    (tmp_path / "comp4_det_val_cat.txt").write_text("b 0.5 1 1 2 2\n")
    with pytest.raises(
        ValueError, match=r"comp4_det_val_cat\.txt: class 'cat' has another file, comp4_det_test_cat\.txt"
    ):
        read_comp4(tmp_path, ["cat"], offset=1.0)
    assert [image.image_id for image in read_comp4(tmp_path, ["cat"], offset=1.0, image_set="val")] == ["b"]


def test_a_class_that_cannot_be_a_file_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'mouse/rat'"):
        write_comp4(tmp_path, "test", ["mouse/rat"], [], offset=1.0)


@pytest.mark.parametrize("label", [0, 3])
def test_labels_out_of_range_are_not_written(tmp_path, label):
    wrong = detections([[0, 0, 1, 1]], [1], [label])
    with pytest.raises(ValueError, match=f"label {label}"):
        check_detections(wrong, 2)
    with pytest.raises(ValueError, match=f"label {label}"):
        write_comp4(tmp_path, "test", CLASSES, [wrong], offset=1.0)
    with pytest.raises(ValueError, match=f"label {label}"):
        write_detections(tmp_path / "d.json", CLASSES, IMAGES, [wrong], offset=1.0)


def test_metrics_without_a_value_are_null(tmp_path):
    write_metrics(tmp_path / "metrics.json", {"mAP": None, "AP": {"cat": 0.5}})
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"mAP": None, "AP": {"cat": 0.5}}
    with pytest.raises(ValueError, match="JSON"):
        write_metrics(tmp_path / "metrics.json", {"mAP": float("nan")})


def test_first_few_tells_how_many_there_are():
    assert first_few(range(3)) == "0, 1, 2"
    assert first_few("abcd", limit=2) == "a, b, ... 4 in all"


def test_json_that_is_nested_too_deeply_or_holds_endless_numbers(tmp_path: Path) -> None:
    path = tmp_path / "detections.json"
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"detections\.json: not valid JSON"):
        read_detections(path, offset=1.0)
    row = f'{{"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, {10**400}], "score": 0.5}}'
    path.write_text(f'{{"classes": ["a"], "images": [], "detections": [{row}]}}')
    with pytest.raises(ValueError, match=r"detections\[0\]: bbox .* is not \[x, y, width, height\]"):
        read_detections(path, offset=1.0)


@pytest.mark.parametrize("images", [0.5, [{}], [{"id": []}], [None]])
def test_images_that_are_no_ids(tmp_path: Path, images: object) -> None:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"classes": ["a"], "images": images, "detections": []}))
    with pytest.raises(ValueError, match=r"detections\.json: 'images' must be a list of ids"):
        read_detections(path, offset=1.0)
    row = {"image_id": [1], "category_id": 1, "bbox": [1, 1, 5, 5], "score": 0.5}
    path.write_text(json.dumps({"classes": ["a"], "images": [], "detections": [row]}))
    with pytest.raises(ValueError, match=r"detections\[0\]: image_id \[1\] is no text or whole number"):
        read_detections(path, offset=1.0)


def test_a_comp4_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_a.txt").write_bytes(b"1 0.5\xff")
    with pytest.raises(ValueError, match=r"comp4_det_test_a\.txt: is not UTF-8 text \(byte 5\)"):
        read_comp4(tmp_path, ["a"], offset=1.0)


def test_results_are_not_written_through_links_that_lie_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    for name in ("comp4_det_test_a.txt", "comp4_det_test_a.txt.part", "metrics.json", "metrics.json.part"):
        (out / name).symlink_to(tmp_path / "precious")
    write_comp4(out, "test", ["a"], [], offset=1.0)
    write_metrics(out / "metrics.json", {"mAP": 0.5})
    assert (tmp_path / "precious").read_text() == "mine"
    assert not any(path.is_symlink() for path in out.iterdir())


@pytest.mark.parametrize("ids", [[3, 3], [3, 3, 5], [3], {"3": 1}, ["3", "5"]])
def test_category_ids_that_are_not_one_for_each_class(tmp_path: Path, ids: object) -> None:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps({"classes": ["a", "b"], "category_ids": ids, "images": [], "detections": []}))
    with pytest.raises(ValueError, match=r"detections\.json: 'category_ids' must be a different number for each"):
        read_detections(path, offset=1.0)
