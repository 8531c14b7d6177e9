import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rcnn.training.log import SCALARS, Log, NonFiniteLossError
from tests import tiny

KEYS = ["step", "epoch", "lr", *SCALARS, "images_per_second", "memory_bytes"]


def scalars(value: float) -> dict[str, Tensor]:
    return {name: torch.tensor(value + i) for i, name in enumerate(SCALARS)}


def log_of(path: Path, *, every: int = 2, total: int = 100) -> Log:
    return Log(path / "metrics.jsonl", every=every, total=total, name_image=lambda index: f"image{index}.jpg")


def lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_scalars_are_those_of_the_command_lines_contract() -> None:
    assert " ".join(SCALARS) == "loss rpn_cls rpn_box head_cls head_box rpn_accuracy head_accuracy"


def test_definition_of_a_line(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    log.add(1, 0.25, 0.1, scalars(1.0), tiny.batch())
    assert not (tmp_path / "metrics.jsonl").exists()
    log.add(2, 0.5, 0.2, scalars(3.0), tiny.batch())
    (line,) = lines(tmp_path)
    assert list(line) == KEYS
    assert (line["step"], line["epoch"], line["lr"]) == (2, 0.5, 0.2)
    assert [line[name] for name in SCALARS] == [2.0 + i for i in range(len(SCALARS))]
    assert line["images_per_second"] > 0 and line["memory_bytes"] > 10**6


def test_lines_are_added_and_the_last_step_has_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    log = log_of(tmp_path, every=3, total=7)
    for step in range(1, 8):
        log.add(step, step / 7, 0.1, scalars(step), tiny.batch())
    assert [line["step"] for line in lines(tmp_path)] == [0, 3, 6, 7]
    assert [line["loss"] for line in lines(tmp_path)[1:]] == [2, 5, 7]


def test_a_flush_writes_what_is_there_and_nothing_when_nothing_is(tmp_path: Path) -> None:
    log = log_of(tmp_path, every=100)
    log.flush(0.0, 0.1)
    assert not (tmp_path / "metrics.jsonl").exists()
    log.add(1, 0.1, 0.1, scalars(1.0), tiny.batch())
    log.flush(0.1, 0.1)
    log.flush(0.1, 0.1)
    assert [line["step"] for line in lines(tmp_path)] == [1]


def test_the_console_says_step_loss_and_time_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = log_of(tmp_path)
    for step in (1, 2):
        log.add(step, step / 4, 0.001, scalars(1.5), tiny.batch())
    line = capsys.readouterr().err
    assert "step 2/100" in line and "loss 1.5000" in line and "lr 1.00e-03" in line and "left" in line


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_bad_loss_names_step_images_and_way_out(tmp_path: Path, bad: float) -> None:
    log = log_of(tmp_path, every=3)
    log.add(1, 0.1, 0.1, scalars(1.0), tiny.batch())
    batch = tiny.batch()._replace(image_index=torch.tensor([41, -1]))
    log.add(2, 0.1, 0.1, scalars(1.0) | {"loss": torch.tensor(bad)}, batch)
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*batch: image41\.jpg\..*--train\.lr.*--resume") as error:
        log.add(3, 0.1, 0.1, scalars(1.0), tiny.batch())
    assert "image0" not in str(error.value) and "image-1" not in str(error.value)
    assert isinstance(error.value, ValueError)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_rewinding_drops_what_a_resumed_run_writes_again_and_a_torn_line(tmp_path: Path) -> None:
    log = log_of(tmp_path, every=1)
    log.rewind(3)
    assert not (tmp_path / "metrics.jsonl").exists()
    for step in range(1, 6):
        log.add(step, step / 7, 0.1, scalars(step), tiny.batch())
    before = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "ep')
    log.rewind(3)
    assert (tmp_path / "metrics.jsonl").read_text() == "".join(before[:3])


def test_what_a_phase_does_not_train_is_null_and_not_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, head = log_of(tmp_path, every=1), ("loss", "head_cls", "head_box", "head_accuracy")
    log.add(1, 0.5, 0.1, {name: torch.tensor(0.25) for name in head}, tiny.batch())
    (row,) = lines(tmp_path)
    assert {name: row[name] for name in SCALARS} == {name: 0.25 if name in head else None for name in SCALARS}
    told = capsys.readouterr().err
    assert "(head 0.250 + 0.250, right 25.0%)" in told and "rpn" not in told
    with pytest.raises(NonFiniteLossError) as error:
        log.add(2, 1.0, 0.1, {name: torch.tensor(float("nan")) for name in head}, tiny.batch())
    assert "head_cls nan" in str(error.value) and "rpn" not in str(error.value)
