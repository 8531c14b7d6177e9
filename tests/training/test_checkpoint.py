import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from rcnn.training.checkpoint import TRAILER, checkpoint_paths, load_checkpoint, newest_sound, save_checkpoint

CPU = torch.device("cpu")


def state(value: float = 0.0) -> dict[str, object]:
    return {"model": {"w": torch.full((3, 2), value)}, "optimiser": {"lr": value}, "rng": torch.get_rng_state()}


def newest(folder: Path) -> tuple[int, dict[str, Any]] | None:
    path = newest_sound(folder)
    return load_checkpoint(path, CPU) if path else None


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_definition_the_newest_comes_back(tmp_path: Path) -> None:
    for step in (3, 20, 100):
        save_checkpoint(tmp_path / "checkpoints", step, state(step), keep=5)
    found = newest(tmp_path / "checkpoints")
    assert found is not None
    step, back = found
    assert step == 100 and back["optimiser"] == {"lr": 100}
    assert torch.equal(back["model"]["w"], torch.full((3, 2), 100.0))
    assert torch.equal(back["rng"], torch.get_rng_state())


def test_memory_formats_come_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_checkpoint(tmp_path, 1, {"w": weight}, keep=1)
    found = newest(tmp_path)
    assert found is not None
    assert torch.equal(found[1]["w"], weight) and found[1]["w"].stride() == weight.stride()


def test_without_a_checkpoint_there_is_none(tmp_path: Path) -> None:
    assert newest(tmp_path / "nowhere") is None
    (tmp_path / "step_x.pt").touch()
    (tmp_path / "step_00000003.tmp").touch()
    assert newest(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_only_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    for step in range(1, 6):
        path = save_checkpoint(tmp_path, step, state(), keep=keep)
        assert path == checkpoint_paths(tmp_path)[-1]
    assert names(tmp_path) == [f"step_{step:08d}.pt" for step in range(6 - keep, 6)]


def test_a_full_disk_is_said_and_the_older_checkpoint_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save_checkpoint(tmp_path, 10, state(1.0), keep=1)

    def write_a_little(_: object, file: object) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", write_a_little)
    with pytest.raises(ValueError, match=r"step_00000020\.pt.*No space left on device.*step_00000010\.pt.*--resume"):
        save_checkpoint(tmp_path, 20, state(2.0), keep=1)
    assert names(tmp_path) == [first.name]
    found = newest(tmp_path)
    assert found is not None and found[0] == 10


def test_a_disk_full_from_the_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def short_write(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", short_write)
    with pytest.raises(ValueError, match="there is no earlier checkpoint"):
        save_checkpoint(tmp_path, 20, state(), keep=1)
    assert names(tmp_path) == []


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file in its place")
    with pytest.raises(ValueError, match=r"checkpoints.*cannot be written"):
        save_checkpoint(tmp_path / "checkpoints", 1, state(), keep=1)


def test_a_kill_in_the_middle_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 10, state(), keep=1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, 20, state(), keep=1)
    found = newest(tmp_path)
    assert found is not None and found[0] == 10


def damage(whole: bytes, chance: random.Random) -> bytes:
    """Cut off somewhere, or a bit turned over."""
    place = chance.randrange(len(whole))
    if chance.random() < 0.5:
        return whole[:place]
    return whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]


def test_two_hundred_damaged_checkpoints_are_noticed_and_the_one_before_is_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chance = random.Random(0)
    before = save_checkpoint(tmp_path, 1, state(1.0), keep=2)
    path = save_checkpoint(tmp_path, 2, state(2.0), keep=2)
    whole = path.read_bytes()
    for number in range(200):
        # the last ten lose a part of the checksum, from a byte on
        cut = len(whole) - 1 - (number - 190) * TRAILER // 10 if number >= 190 else None
        path.write_bytes(damage(whole, chance) if cut is None else whole[:cut])
        caplog.clear()
        assert newest_sound(tmp_path) == before, number
        assert "step_00000002.pt: damaged" in caplog.text
        assert names(tmp_path) == [before.name, f"{path.name}.damaged"]
    path.write_bytes(whole)
    assert newest_sound(tmp_path) == path


def test_an_empty_checkpoint_is_damaged(tmp_path: Path) -> None:
    (tmp_path / "step_00000001.pt").touch()
    with pytest.raises(ValueError, match=r"no checkpoint there is sound \(1 damaged\); begin anew"):
        newest_sound(tmp_path)


def test_a_checkpoint_that_was_set_aside_is_not_counted_among_those_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    (tmp_path / "step_00000002.pt").write_bytes(b"")
    newest_sound(tmp_path)
    save_checkpoint(tmp_path, 2, state(2), keep=2)
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.pt", "step_00000002.pt.damaged"]


def test_code_in_a_checkpoint_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "was here"),)

    path = save_checkpoint(tmp_path, 1, {"model": Evil()}, keep=1)
    assert newest_sound(tmp_path) == path
    with pytest.raises(ValueError, match=r"step_00000001\.pt: damaged"):
        load_checkpoint(path, CPU)
    assert not (tmp_path / "was here").exists()
