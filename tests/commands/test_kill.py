"""Processes that are killed without warning, and the runs that go on after them."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rcnn.data.shapes import write_shapes

KILLS = 20
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
