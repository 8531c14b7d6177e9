"""`rcnn reeval` on a real detector's files for all of VOC 2007 test."""

import json
import tarfile
from pathlib import Path

import pytest

from rcnn.cli import main


@pytest.mark.parametrize(("metric", "key"), [("voc07_11point", "11point"), ("voc_area", "area")])
def test_reeval_gives_the_published_numbers(shared: Path, tmp_path: Path, metric: str, key: str) -> None:
    with tarfile.open(shared / "data" / "voc_annotations" / "voc2007_annotations_full.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    folder = shared / "data" / "voc2007_test_detections"
    where = ["--data.root", str(tmp_path / "VOCdevkit"), "--data.test", "2007_test", "--out", str(tmp_path)]
    assert main(["reeval", str(folder), *where, "--eval.metric", metric]) == 0
    expected = json.loads((folder / "expected.json").read_text())
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["mAP"] == pytest.approx(expected[f"mAP_{key}"], abs=1e-4)
    for name, value in expected.get(f"AP_{key}", {}).items():
        assert metrics["AP"][name] == pytest.approx(value, abs=1e-4), name
