"""A whole measurement: ours alone, then pair by pair with each of the others."""

import logging
from statistics import median
from typing import Any

from rcnn.benchmark.process import Worker
from rcnn.benchmark.report import Report, Row
from rcnn.benchmark.settings import Settings, Side
from rcnn.benchmark.timing import ratios, time_alone, time_pairs

logger = logging.getLogger("rcnn.bench")
SLOW_RUNS = 2


def measure(settings: Settings, sides: list[Side], *, runs: int) -> Report:
    """Time every task of the first side, alone or in turn with the same task of each other side.

    Raises:
        ValueError: a side cannot be measured here.
    """
    if runs < 1:
        raise ValueError(f"--runs {runs}: must be at least 1")
    with _open(sides[0], settings) as ours:
        own = {task: _counted(ours, task) for task in ours.tasks}
        versions = dict(ours.about["versions"])
        rows = []
        for side in sides[1:]:
            with _open(side, settings) as theirs:
                versions |= theirs.about["versions"]
                rows += _time_slow(theirs, runs) if side.slow else _compare(ours, theirs, own, runs)
        for task, row in own.items():
            if not row.times:
                row.times.extend(time_alone(lambda task=task: ours.time(task), runs=runs))
        _complete_ratios(own, rows)
        _add_memory(ours, list(own.values()))
        networks = settings.what in ("infer", "train")
        used = {row.precision for row in [*own.values(), *rows]} if networks else set()
        ceilings = {name: ours.ask("ceiling", precision=name)["flops_per_second"] for name in sorted(used)}
        facts = {"versions": versions, "threads": ours.about["threads"], "device": ours.about["device"]}
    return Report(settings, _in_order(own, rows), ceilings, runs, facts)


def _open(side: Side, settings: Settings) -> Worker:
    logger.info("%s: starting", side.label)
    return Worker(side, settings)


def _compare(ours: Worker, theirs: Worker, own: dict[str, Row], runs: int) -> list[Row]:
    """A row of theirs for every task that both have; the times of ours go to its own row."""
    rows = []
    for task in theirs.tasks:
        logger.info("%s: %s, %d pairs", theirs.side.label, task, runs)
        row = _counted(theirs, task)
        our_times, their_times = time_pairs(lambda t=task: ours.time(t), lambda t=task: theirs.time(t), runs=runs)
        own[task].times.extend(our_times)
        row.times.extend(their_times)
        row.ratios.extend(ratios(our_times, their_times))
        rows.append(row)
    _add_memory(theirs, rows)
    return rows


def _time_slow(theirs: Worker, runs: int) -> list[Row]:
    """Few runs, and ours need not wait for them: no pairs."""
    rows = [_counted(theirs, task) for task in theirs.tasks]
    for row in rows:
        row.times.extend(theirs.time(row.task) for _ in range(min(runs, SLOW_RUNS)))
    return rows


def _complete_ratios(own: dict[str, Row], rows: list[Row]) -> None:
    """Where there were no pairs, ratios to the median of ours."""
    for row in rows:
        if not row.ratios:
            row.ratios.extend(time / median(own[row.task].times) for time in row.times)


def _counted(worker: Worker, task: str) -> Row:
    work: dict[str, Any] = worker.ask("count", task=task)
    return Row(task=task, side=worker.side.label, **worker.tasks[task], flops=work["flops"], rois=work["rois"])


def _add_memory(worker: Worker, rows: list[Row]) -> None:
    peak = worker.ask("memory")["bytes"]
    for row in rows:
        row.peak_bytes = peak


def _in_order(own: dict[str, Row], rows: list[Row]) -> list[Row]:
    """Task by task, ours first."""
    return [row for task in own for row in [own[task], *(r for r in rows if r.task == task)]]
