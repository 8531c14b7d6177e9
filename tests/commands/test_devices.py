"""The verbs in several processes as a user runs them: equal results, another number on resuming, and mishaps."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from rcnn.cli import main
from rcnn.commands import devices
from rcnn.data.shapes import write_shapes
from rcnn.weights import safetensors
from tests.ranks import children

SMALL = [
    "--data.train", "trainval", "--data.test", "test", "--data.short-side", "64", "--data.long-side", "96",
    "--data.workers", "0", "--model.head-hidden", "16", "--model.rpn-channels", "16", "--model.dropout", "0.5",
    "--train.rpn-pre-nms", "100", "--train.rpn-post-nms", "20", "--train.rois", "16", "--train.precision", "fp32",
    "--train.log-every", "5", "--train.warmup", "2", "--eval.precision", "fp32", "--eval.rpn-pre-nms", "100",
    "--eval.rpn-post-nms", "20", "--eval.dump-pre-nms", "200", "--eval.dump-post-nms", "30",
]  # fmt: skip
NO_LOGS = ("--log-dir", os.devnull)  # torchrun leaves a folder of logs in the temporary one otherwise
PHASES = ("rpn1", "rcnn1", "rpn2", "rcnn2")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=8, test=5, seed=0)
    return root


def train(shapes: Path, run: Path, *more: str) -> list[str]:
    where = ["--data.root", str(shapes), "--run", str(run)]
    return [sys.executable, "-m", "rcnn", "train", "r18_custom", *where, *SMALL, "--train.epochs", "5", *more]


def torchrun(command: list[str], *options: str) -> list[str]:
    """The same command by torchrun."""
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        *options,
        *NO_LOGS,
        "-m",
        "rcnn",
        "--",
        *command[3:],
    ]


def call(command: list[str]) -> str:
    """What the command said, which must end well."""
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=150)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def weights(run: Path) -> dict[str, torch.Tensor]:
    return safetensors.load(run / "model.safetensors")[0]


def difference(a: Path, b: Path) -> float:
    """The largest difference of a tensor, relative to it."""
    ours, theirs = weights(a), weights(b)
    assert set(ours) == set(theirs)
    return max(((ours[n] - theirs[n]).norm() / ours[n].norm().clamp(min=1e-30)).item() for n in ours)


@pytest.fixture(scope="module")
def whole(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 20 steps of two images, by one process."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    call(train(shapes, run, "--train.batch", "2"))
    return run


# --- equal results --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_two_processes_train_as_one(shapes: Path, whole: Path, tmp_path: Path) -> None:
    told = call(train(shapes, tmp_path / "two", "--train.batch", "1", "--devices", "2"))
    assert "20 steps of 2 images on cpu, by 2 processes" in told and told.count("step 20/20") == 1
    call(torchrun(train(shapes, tmp_path / "torchrun", "--train.batch", "1"), "--nproc-per-node", "2"))
    assert difference(whole, tmp_path / "two") < 1e-5
    assert (tmp_path / "two" / "model.safetensors").read_bytes() == (
        tmp_path / "torchrun" / "model.safetensors"
    ).read_bytes()
    ours, theirs = (
        [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        for run in (whole, tmp_path / "two")
    )
    for a, b in zip(ours, theirs, strict=True):
        assert all(
            a[key] == pytest.approx(b[key], abs=1e-4) for key in a if "_second" not in key and "bytes" not in key
        )


@pytest.mark.slow
def test_each_phase_of_alternate_training_by_two_processes_as_by_one(shapes: Path, tmp_path: Path) -> None:
    options = ["--train.method", "alternate", "--train.fast-batch"]
    call(train(shapes, tmp_path / "one", "--train.batch", "2", *options, "4"))
    call(train(shapes, tmp_path / "two", "--train.batch", "1", *options, "2", "--devices", "2"))
    call(train(shapes, tmp_path / "passes", "--train.batch", "1", *options, "2", "--train.total-batch", "2"))
    for other in ("two", "passes"):
        for phase in (*PHASES, "."):
            assert difference(tmp_path / "one" / phase, tmp_path / other / phase) < 1e-5, (other, phase)


@pytest.mark.slow
def test_test_and_proposals_are_the_same_for_any_number(whole: Path, tmp_path: Path) -> None:
    made = []
    for number in ("1", "2", "3"):
        out, regions = tmp_path / number, tmp_path / f"{number}.npz"
        command = [sys.executable, "-m", "rcnn", "test", str(whole), "--devices", number, "--out", str(out)]
        assert "mean" in call([*command, "--eval.score", "0.0"])
        call([sys.executable, "-m", "rcnn", "proposals", str(whole), "--devices", number, "--out", str(regions)])
        made.append(
            [(out / name).read_bytes() for name in ("detections.json", "metrics.json")] + [regions.read_bytes()]
        )
    assert made[0] == made[1] == made[2]
    assert len(json.loads(made[0][0])["detections"]) > 20 and len(np.load(tmp_path / "1.npz")["boxes"]) > 20


@pytest.mark.slow
def test_two_machines_that_share_no_storage(shapes: Path, tmp_path: Path) -> None:
    """Two of torchrun's agents, each with a run directory of its own: the second gets what it needs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meet = f"127.0.0.1:{free.getsockname()[1]}"
    options = ["--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-id", "job", "--rdzv-endpoint", meet]
    agents = []
    for name in ("a", "b"):
        command = torchrun(train(shapes, tmp_path / name, "--train.method", "alternate", "--train.batch", "1"))
        command[3:4] = options  # instead of --standalone
        agents.append(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT))
    told = [agent.communicate(timeout=150)[1] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], [each[-3000:] for each in told]
    first, second = sorted((tmp_path / "a", tmp_path / "b"), key=lambda run: not (run / "recipe.json").exists())
    left = {str(path.relative_to(second)) for path in second.rglob("*.*")}
    wanted = {f"{phase}/model.safetensors" for phase in PHASES} | {"rpn1/proposals.npz", "rpn2/proposals.npz"}
    assert left == wanted and all((first / name).read_bytes() == (second / name).read_bytes() for name in wanted)
    call(train(shapes, tmp_path / "one", "--train.method", "alternate", "--train.batch", "2"))
    assert difference(tmp_path / "one", first) < 1e-5


# --- stopped, killed, resumed ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("others", [1, 3])
def test_a_stopped_run_goes_on_with_another_number_of_processes(
    shapes: Path, whole: Path, tmp_path: Path, others: int
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        train(shapes, run, "--train.batch", "1", "--devices", "2", "--train.log-every", "1"),
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    with process.stderr or pytest.fail() as lines:
        told = [line for line in lines if line.startswith("step 6/") and not stop(process)]
    assert process.wait(60) == 1 and told
    saved = sorted((run / "checkpoints").iterdir())[-1]
    assert 6 <= int(saved.stem.removeprefix("step_")) < 20
    call(train(shapes, run, "--train.batch", "1", "--devices", str(others), "--train.log-every", "1", "--resume"))
    assert json.loads((run / "recipe.json").read_text())["train"]["total_batch"] == 2
    assert difference(whole, run) < 1e-5
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 21))


def stop(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)


@pytest.mark.slow
def test_torchrun_starts_the_group_anew_when_a_process_is_killed(shapes: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = train(shapes, run, "--train.batch", "1", "--train.save-every", "0.25", "--train.log-every", "1")
    process = subprocess.Popen(
        torchrun(command, "--nproc-per-node", "2", "--max-restarts", "2"),
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    killed = 0
    with process.stderr or pytest.fail() as lines:
        for line in lines:
            if line.startswith(("step 5/", "step 12/")) and killed < 2:
                os.kill(children(process.pid)[killed], signal.SIGKILL)  # rank 0, then rank 1
                killed += 1
    assert process.wait(60) == 0 and killed == 2
    assert difference(whole, run) < 1e-5


@pytest.mark.slow
def test_a_damaged_checkpoint_is_left_for_the_one_before(shapes: Path, whole: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    newest = sorted((run / "checkpoints").iterdir())[-1]
    newest.write_bytes(newest.read_bytes()[:-9])
    (run / "model.safetensors").unlink()
    told = call(train(shapes, run, "--train.batch", "1", "--devices", "2", "--resume"))
    assert f"{newest}: damaged, set aside" in told
    assert difference(whole, run) < 1e-5


# --- mishaps --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_error_in_one_process_is_told_once_and_ends_all(shapes: Path, tmp_path: Path) -> None:
    root, told, begun = tmp_path / "shapes", [], time.perf_counter()
    shutil.copytree(shapes, root)
    picture = sorted((root / "JPEGImages").glob("train*"))[3]
    process = subprocess.Popen(
        train(root, tmp_path / "run", "--train.batch", "1", "--devices", "2", "--train.log-every", "1"),
        stderr=subprocess.PIPE, text=True, env=ENVIRONMENT,
    )  # fmt: skip
    with process.stderr or pytest.fail() as lines:
        for line in lines:
            told.append(line)
            if line.startswith("step 4/"):
                picture.unlink()  # the process whose turn it is in the next epoch cannot read it
    faults = [line for line in told if line.startswith("rcnn:")]
    assert process.wait(60) == 2 and time.perf_counter() - begun < 100
    assert len(faults) == 1 and f"of 2: {picture}: " in faults[0], told
    assert "Traceback" not in "".join(told)


@pytest.mark.slow
def test_what_is_wrong_with_the_command_is_told_once(whole: Path, shapes: Path, tmp_path: Path) -> None:
    command = train(shapes, whole, "--devices", "2")
    environment = ENVIRONMENT | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=150)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"rcnn: process 0 of 2: {whole}: holds a run already; go on with --resume, or choose another --run\n"
    )
    assert not list(tmp_path.glob("torchelastic_*"))  # the launcher's folder of logs


def test_numbers_that_cannot_be(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "r18_custom", "--devices", "-1"]) == 2
    assert "--devices -1: give the number of processes" in capsys.readouterr().err
    assert not devices.must_start(0) and not devices.must_start(1) and devices.must_start(2)
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert not devices.must_start(2)
    with pytest.raises(ValueError, match="--devices 3: torchrun started 2 processes on this machine"):
        devices.must_start(3)


@pytest.mark.parametrize(
    ("ends", "saves", "restarts", "status"),
    [
        ("kkk.", [0, 1, 2, 3], 1, 0),  # each brought a checkpoint
        ("kkkk", [0, 0, 0, 0, 0], 3, 9),
        ("kkk.", [0, 0, 0, 0], 3, 0),
        ("kkk", [0, 0, 1, 1], 1, 9),
        ("k", [0, 1], 0, 9),
        ("ke", [0, 0], 3, 2),  # an error with a message would only come again
    ],
)
def test_killed_processes_are_started_anew_while_they_get_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    ends: str,
    saves: list[int],
    restarts: int,
    status: int,
) -> None:
    results = {"k": (9, "process 1 of 2 was killed (SIGKILL)"), "e": (2, ""), ".": (0, "")}
    jobs, saved, left = set(), iter(saves), iter(ends)

    def launch(job: str, devices: int, *argv: str) -> tuple[int, str]:
        jobs.add(job)
        return results[next(left)]

    for name in ("OMP_NUM_THREADS", "TORCH_CPP_LOG_LEVEL"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr(devices, "_launch", launch)
    assert devices.start("train", [], 2, restarts=restarts, saved=lambda: next(saved)) == status
    assert len(jobs) == 1 and next(left, None) is None
    err = capsys.readouterr().err
    assert err.count("starting all 2 anew from what is saved") == len(ends) - 1
    gave_up = f"was killed (SIGKILL); {restarts} restarts brought no new checkpoint (--restarts)\n"
    assert (gave_up in err) == (status == 9 and restarts > 0)


def test_a_run_keeps_the_images_of_a_step(whole: Path, shapes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = train(shapes, whole, "--train.total-batch", "3", "--resume")
    assert main(command[3:]) == 2
    assert "--train.total_batch 2 before, 3 now" in capsys.readouterr().err
