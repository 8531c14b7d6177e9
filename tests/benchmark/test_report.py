import json
from pathlib import Path

import pytest

from rcnn.benchmark import report as module
from rcnn.benchmark.report import Report, Row, cpu_name, find_commit, format_report, to_dict, write_json
from tests.benchmark.small import settings


def report(**theirs: int) -> Report:
    ours = Row("infer", "rcnn", "bf16", 2, flops=10**12, rois=300, times=[2.0, 4.0, 1.0], peak_bytes=2**30)
    work = {"flops": 10**12, "rois": 300, **theirs}
    peer = Row("infer", "torchvision best", "bf16", 2, **work, times=[8.0, 6.0, 7.0], ratios=[4.0, 1.5, 7.0])
    facts = {"versions": {"torch": "2.x"}, "threads": 2, "device": "cpu"}
    return Report(settings("infer"), [ours, peer], {"bf16": 2e12}, 3, facts)


def test_numbers_by_hand() -> None:
    ours, theirs = to_dict(report(), "some")["rows"]
    assert ours["time"]["median"] == 2.0 and ours["times"] == [2.0, 4.0, 1.0]
    assert ours["images_per_second"] == 1.0
    assert ours["flops_per_second"] == 5e11
    assert ours["share_of_ceiling"] == 0.25
    assert ours["ratio"] is None and theirs["ratio"]["median"] == 4.0


def test_json_says_where_it_comes_from(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    write_json(path, report(), "some")
    read = json.loads(path.read_text())
    assert read["recipe"] == "some" and read["what"] == "infer" and read["height"] == 64
    assert read["machine"]["cpu"] == cpu_name() and read["machine"]["threads"] == 2
    assert read["ceilings"] == {"bf16": 2e12}
    assert {"rcnn", "commit", "date"} <= set(read)


def test_the_table_has_a_line_for_each_side() -> None:
    lines = format_report(report(), "some").splitlines()
    (ours,) = (line for line in lines if line.startswith("infer  rcnn bf16"))
    assert " ".join(ours.split()[3:]) == "2000 ms 1500 ms .. 3000 ms 1.00 1000.0 500 25% 300 1024 MiB"
    (theirs,) = (line for line in lines if "torchvision best bf16" in line)
    assert theirs.endswith("4.00 (1.50 .. 7.00)")
    assert lines[-1] == "ceiling bf16: 2000 GFLOP/s"


def test_columns_that_say_nothing_are_left_out() -> None:
    row = Row("decode", "rcnn", "uint8", 2, flops=0, rois=0, times=[0.001])
    text = format_report(report()._replace(rows=[row], ceilings={}), "some")
    assert "images/s" in text and "1.00 ms" in text
    assert not any(word in text for word in ("GFLOP", "RoIs", "peak memory", "time / ours"))


def test_a_set_is_said_by_its_images() -> None:
    text = format_report(report()._replace(settings=settings("eval", images=7)), "some")
    assert text.startswith("eval, 7 images of 100 detections, 80 classes\n")
    assert format_report(report(), "some").startswith("infer, some: batch 1, 64 x 96\n")


@pytest.mark.parametrize("way", ["winograd", "int8"])
def test_the_way_of_ours_is_said(way: str) -> None:
    text = format_report(report()._replace(settings=settings("infer", **{way: True})), "some")
    assert text.startswith(f"infer, some: batch 1, 64 x 96, ours by --{way}\n")


@pytest.mark.parametrize("theirs", [{"rois": 299}, {"flops": 970 * 10**9}])
def test_unequal_work_is_said(theirs: dict[str, int]) -> None:
    assert "NOT THE SAME WORK: infer, torchvision best" in format_report(report(**theirs), "some")
    assert "NOT THE SAME WORK" not in format_report(report(flops=999 * 10**9), "some")


def test_an_installed_package_has_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_commit()
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages" / "rcnn" / "benchmark" / "report.py"))
    assert find_commit().startswith("none (version ")
