from typing import Any

import pytest

from rcnn.benchmark import measure as module
from rcnn.benchmark.measure import measure
from rcnn.benchmark.process import Worker
from rcnn.benchmark.settings import Settings, Side
from rcnn.benchmark.timing import WARM_UP
from tests.benchmark.small import settings

TASKS = {"rcnn": ("nms", "roi"), "peer": ("roi", "nms"), "half": ("roi",)}


class Fake(Worker):
    """A worker without a process: every run takes as many seconds as its label has letters."""

    log: list[str]

    def __init__(self, side: Side, given: Settings) -> None:
        self.side, self.closed = side, False
        named = {name: {"precision": "bf16", "images": 2} for name in TASKS[side.label]}
        self.about = {"tasks": named, "versions": {side.label: "1.0"}, "threads": 3, "device": "cpu"}

    def ask(self, do: str, **arguments: str) -> dict[str, Any]:
        self.log.append(f"{self.side.label} {do} {' '.join(arguments.values())}".strip())
        answers = {
            "count": {"flops": 100, "rois": 5},
            "run": {"seconds": len(self.side.label)},
            "ceiling": {"flops_per_second": 50.0},
            "memory": {"bytes": len(self.side.label)},
        }
        return answers[do]

    def close(self) -> None:
        self.log.append(f"{self.side.label} closed")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(module, "Worker", Fake)
    monkeypatch.setattr(Fake, "log", [], raising=False)
    return Fake.log


def test_alone(log: list[str]) -> None:
    report = measure(settings("ops"), [Side("rcnn")], runs=3)
    assert [(row.task, row.side, row.times, row.ratios) for row in report.rows] == [
        ("nms", "rcnn", [4, 4, 4], []),
        ("roi", "rcnn", [4, 4, 4], []),
    ]
    assert log.count("rcnn run nms") == 3 + WARM_UP
    assert report.ceilings == {} and report.facts["threads"] == 3


def test_against_others_pair_by_pair(log: list[str]) -> None:
    report = measure(settings("infer"), [Side("rcnn"), Side("peer"), Side("half")], runs=2)
    rows = {(row.task, row.side): row for row in report.rows}
    assert list(rows) == [("nms", "rcnn"), ("nms", "peer"), ("roi", "rcnn"), ("roi", "peer"), ("roi", "half")]
    assert [len(row.times) for row in report.rows] == [2, 2, 4, 2, 2]
    assert rows["nms", "peer"].ratios == [1.0, 1.0] and not rows["nms", "rcnn"].ratios
    assert {row.flops for row in report.rows} == {100} and {row.peak_bytes for row in report.rows} == {4}
    assert report.ceilings == {"bf16": 50.0}
    assert report.facts["versions"] == {"rcnn": "1.0", "peer": "1.0", "half": "1.0"}


def test_a_slow_side_gets_few_runs_and_no_warm_up(log: list[str]) -> None:
    report = measure(settings("ops"), [Side("rcnn"), Side("half", slow=True)], runs=9)
    assert log.count("half run roi") == module.SLOW_RUNS
    assert log.index("half closed") < log.index("rcnn run roi")
    assert [len(row.times) for row in report.rows] == [9, 9, module.SLOW_RUNS]
    assert report.rows[-1].ratios == [1.0] * module.SLOW_RUNS


def test_a_side_has_gone_before_the_next_comes(log: list[str]) -> None:
    measure(settings("ops"), [Side("rcnn"), Side("peer"), Side("half")], runs=1)
    assert log.index("peer closed") < log.index("half count roi")
    assert log[-1] == "rcnn closed"


def test_no_runs_is_refused() -> None:
    with pytest.raises(ValueError, match="--runs 0: must be at least 1"):
        measure(settings("infer"), [Side("rcnn")], runs=0)
