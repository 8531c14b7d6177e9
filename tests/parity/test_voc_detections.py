"""A real detector's files for all of VOC2007 test give its published average precision."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from defusedxml import ElementTree

from rcnn.data.voc import load_voc
from rcnn.evaluation.ground_truth import AnnotatedImage
from rcnn.evaluation.results import read_comp4, read_detections, write_comp4, write_detections
from rcnn.evaluation.voc import evaluate_voc

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def expected(shared: Path) -> dict:
    return json.loads((shared / "data/voc2007_test_detections/expected.json").read_text())


@pytest.fixture(scope="module")
def devkit(shared: Path, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voc2007")
    with tarfile.open(shared / "data/voc_annotations/voc2007_annotations_full.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "VOCdevkit"


@pytest.fixture(scope="module")
def ground_truth(devkit: Path, expected: dict) -> list[AnnotatedImage]:
    labels = {name: label for label, name in enumerate(expected["AP_11point"], start=1)}
    names = (devkit / "VOC2007/ImageSets/Main/test.txt").read_text().split()
    return [annotated(devkit / f"VOC2007/Annotations/{name}.xml", labels) for name in names]


@pytest.fixture(scope="module")
def detections(shared: Path, expected: dict, ground_truth):
    ids = [image.image_id for image in ground_truth]
    return read_comp4(shared / "data/voc2007_test_detections", list(expected["AP_11point"]), offset=1.0, image_ids=ids)


def annotated(path: Path, labels: dict[str, int]) -> AnnotatedImage:
    """The objects of an xml file, read here by hand so that only the evaluation is under test."""
    objects = list(ElementTree.parse(path).getroot().iter("object"))
    corners = ("xmin", "ymin", "xmax", "ymax")
    boxes = [[float(thing.findtext(f"bndbox/{corner}")) - 1 for corner in corners] for thing in objects]
    difficult = np.array([thing.findtext("difficult") == "1" for thing in objects], np.bool_)
    return AnnotatedImage(
        path.stem,
        np.array(boxes, np.float64).reshape(-1, 4),
        np.array([labels[thing.findtext("name")] for thing in objects], np.int64),
        difficult,
        np.zeros(len(objects), np.bool_),
        np.zeros(len(objects)),
    )


def test_eleven_points(ground_truth, detections, expected):
    metrics = evaluate_voc(ground_truth, detections, list(expected["AP_11point"]), metric="voc07_11point")
    assert metrics["mAP"] == pytest.approx(expected["mAP_11point"], abs=TOLERANCE)
    assert metrics["AP"] == pytest.approx(expected["AP_11point"], abs=TOLERANCE)
    assert sum(metrics["num_detections"].values()) == expected["detections"]
    assert sum(metrics["num_gt"].values()) == 12032  # VOC2007 test, without the difficult ones


def test_area(ground_truth, detections, expected):
    metrics = evaluate_voc(ground_truth, detections, list(expected["AP_11point"]), metric="voc_area")
    assert metrics["mAP"] == pytest.approx(expected["mAP_area"], abs=TOLERANCE)


def test_our_own_reader_of_voc_gives_the_same(shared, ground_truth, detections, expected):
    classes = tuple(expected["AP_11point"])
    table = load_voc(shared / "data/voc2007", "test", classes=classes, offset=1.0)
    ids = {record.image_id for record in table}
    by_hand = [image for image in ground_truth if image.image_id in ids]
    found = [image for image in detections if image.image_id in ids]
    ours, theirs = (evaluate_voc(truth, found, classes, metric="voc_area") for truth in (table, by_hand))
    assert len(ids) == 56
    assert ours == theirs


@pytest.mark.parametrize("kind", ["comp4", "json"])
def test_our_own_files_give_the_same(tmp_path, ground_truth, detections, expected, kind):
    classes = list(expected["AP_11point"])
    if kind == "comp4":
        write_comp4(tmp_path, "2007_test", classes, detections, offset=1.0)
        again = read_comp4(tmp_path, classes, offset=1.0)
    else:
        write_detections(tmp_path / "d.json", classes, [], detections, offset=1.0)
        again = read_detections(tmp_path / "d.json", offset=1.0).detections
    before, after = (evaluate_voc(ground_truth, d, classes, metric="voc_area")["AP"] for d in (detections, again))
    assert after == pytest.approx(before, abs=1e-9)
