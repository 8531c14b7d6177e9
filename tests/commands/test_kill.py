"""Processes that are killed without warning, and the runs that go on after them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rcnn.data.shapes import write_shapes
from tests.ranks import children

KILLS = 20
RANDOM_KILLS = int(os.environ.get("RCNN_KILLS", 5))  # docs/distributed.md has the figures of RCNN_KILLS=50
SMALL = [
    "--train.method", "alternate", "--data.short-side", "64", "--data.long-side", "96", "--data.workers", "0",
    "--model.head-hidden", "64", "--model.rpn-channels", "32", "--model.dropout", "0.5",
    "--train.epochs", "4", "--train.save-every", "0.125", "--train.log-every", "5", "--train.rois", "32",
    "--train.precision", "fp32", "--eval.precision", "fp32", "--eval.dump-pre-nms", "500", "--eval.dump-post-nms", "50",
]  # fmt: skip


def start(root: Path, run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "rcnn", "train", "r18_custom", "--data.root", str(root), "--run", str(run), *SMALL]
    command += ["--resume"] if (run / "recipe.json").is_file() else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process: subprocess.Popen[str]) -> None:
    _, told = process.communicate(timeout=300)
    assert process.returncode == 0, told


@pytest.mark.slow
def test_twenty_kills_in_alternate_training_change_no_bit(tmp_path: Path) -> None:
    root, chance = tmp_path / "shapes", random.Random(0)
    write_shapes(root, train=16, test=2, seed=0)
    begun = time.perf_counter()
    finish(start(root, tmp_path / "whole"))
    whole, seconds = (tmp_path / "whole" / "model.safetensors").read_bytes(), time.perf_counter() - begun
    kills, ended, phases = 0, 0, set()
    while kills < KILLS:
        run = tmp_path / f"killed{ended}"
        process = start(root, run)
        try:
            _, told = process.communicate(timeout=chance.uniform(0.2, 1.0) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            phases |= {path.name for path in run.glob("r*[12]")}
            continue
        assert process.returncode == 0, told
        ended += 1
        assert (run / "model.safetensors").read_bytes() == whole
    finish(start(root, run))
    assert (run / "model.safetensors").read_bytes() == whole
    assert phases == {"rpn1", "rcnn1", "rpn2", "rcnn2"}


# --- any process of a group -----------------------------------------------------------------------------------------


def start_group(root: Path, run: Path) -> subprocess.Popen[bytes]:
    """Two processes, 8 steps for each kill; what they say is in a file beside the run."""
    command = [sys.executable, "-m", "rcnn", "train", "r18_custom", "--data.root", str(root), "--run", str(run), *SMALL]
    command += ["--train.method", "joint", "--train.epochs", str(2 * RANDOM_KILLS), "--train.save-every", "1"]
    command += ["--train.batch", "1", "--train.log-every", "1", "--devices", "2", "--restarts", str(RANDOM_KILLS)]
    with run.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def wait_for(moment: Callable[[], object], process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while not moment():
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.002)


def wait_for_random_moment(run: Path, process: subprocess.Popen[bytes], log: int, chance: random.Random) -> str:
    """While the processes start, at one of their next 8 steps, or while a checkpoint is written."""
    kind = chance.choice(("start", "step", "save"))
    if kind == "start":
        time.sleep(chance.uniform(0.0, 3.0))
        return kind
    wait_for(lambda: inode(run) not in (0, log), process)  # they have come to where they go on
    if kind == "save":
        wait_for(lambda: any((run / "checkpoints").glob(".*.part")), process)
        time.sleep(chance.uniform(0.0, 0.05))
        return kind
    last = steps(run)[-1:] + [chance.randint(1, 8)]
    wait_for(lambda: steps(run)[-1:] >= [sum(last)], process)
    time.sleep(chance.uniform(0.0, 0.05))
    return kind


def inode(run: Path) -> int:
    """Another one each time that the log is begun, or gone on with."""
    path = run / "metrics.jsonl"
    return path.stat().st_ino if path.is_file() else 0


def steps(run: Path) -> list[int]:
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").is_file() else ""
    return [json.loads(line)["step"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def metrics(run: Path) -> list[dict[str, float]]:
    """What the log says, but for speed and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: x for name, x in row.items() if "_second" not in name and "bytes" not in name} for row in rows]


@pytest.mark.slow
def test_kills_of_random_processes_of_a_group_change_no_bit(tmp_path: Path) -> None:
    root, whole, run, chance = tmp_path / "shapes", tmp_path / "whole", tmp_path / "run", random.Random(0)
    write_shapes(root, train=8, test=2, seed=0)
    assert start_group(root, whole).wait(300) == 0
    process, gone, log, kills = start_group(root, run), set(), 0, []
    try:
        for _ in range(RANDOM_KILLS):
            wait_for(lambda gone=gone: len({*children(process.pid)} - gone) == 2, process)
            group = sorted({*children(process.pid)} - gone)
            kind, victim = wait_for_random_moment(run, process, log, chance), chance.randrange(2)
            gone, log = gone | {*group}, inode(run)
            os.kill(group[victim], signal.SIGKILL)
            kills += [kind, victim]
        assert process.wait(300) == 0, run.with_suffix(".log").read_text()[-3000:]
    finally:
        process.terminate()
        process.wait(60)
    told = run.with_suffix(".log").read_text()
    assert told.count("was killed (SIGKILL); starting all 2 anew") == RANDOM_KILLS
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert metrics(run) == metrics(whole) and steps(run) == list(range(1, 8 * RANDOM_KILLS + 1))
    assert {*kills} == {"start", "step", "save", 0, 1}
