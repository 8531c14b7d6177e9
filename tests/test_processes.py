import os
import signal
import time
from pathlib import Path

import pytest
import torch

from rcnn import processes
from rcnn.whereabouts import note
from tests import ranks

# --- one process ----------------------------------------------------------------------------------------------------


def test_one_process_hands_itself_what_it_has(tmp_path: Path) -> None:
    assert (processes.rank(), processes.world()) == (0, 1)
    assert processes.agree({"a": [1, None]}) == {"a": [1, None]}
    assert torch.equal(processes.gather(torch.arange(3)), torch.arange(3)[None])
    assert list(processes.in_turns(iter("abc"), 3, str.encode, bytes.decode)) == ["a", "b", "c"]
    vote = processes.Vote()
    assert not vote(False) and vote(True) and not vote.close()
    processes.share_file(tmp_path / "not there")
    with processes.joined("cpu"):
        assert processes.world() == 1


def test_devices_of_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert processes.own_device("cuda:1") == "cuda:1"
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert processes.own_device("cpu") == "cpu"
    with pytest.raises(ValueError, match=r"--device cuda:1: is one device for 2 processes; use auto"):
        processes.own_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match=r"--devices 2: this machine has 1 CUDA devices; .*--device cpu"):
        processes.own_device("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert processes.own_device("cuda") == "cuda:1"


def test_a_group_that_torchrun_started_anew_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = tmp_path / "job"
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT", raising=False)
    processes.sign(job)
    assert not job.exists() and not processes.is_restarted(job)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "slurm-17")
    processes.sign(job)
    assert processes.is_restarted(job)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "slurm-18")
    assert not processes.is_restarted(job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # it refused another job's run before
    assert not processes.is_restarted(job)
    monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not processes.is_restarted(job)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert processes.is_restarted(job)


# --- several --------------------------------------------------------------------------------------------------------


def exercise(folder: str) -> None:
    """Everything that processes hand each other, once; each has a folder of its own."""
    rank, world = processes.rank(), processes.world()
    print(f"I am {rank}")
    assert processes.agree({"rank": rank}) == {"rank": 0}
    assert processes.gather(torch.tensor([rank, 7])).tolist() == [[each, 7] for each in range(world)]
    for total in (0, 1, 7, 50):
        own = (f"item {number}" for number in range(rank, total, world))
        found = list(processes.in_turns(own, total, str.encode, bytes.decode))
        assert found == ([f"item {number}" for number in range(total)] if rank == 0 else [])
    votes = processes.Vote()
    assert [votes(rank == 1 and step == 3) for step in range(6)] == [False, False, False, False, True, False]
    assert not votes.close()
    _share(Path(folder) / str(rank))


def _share(own: Path) -> None:
    own.mkdir(exist_ok=True)
    (own / "nothing").write_bytes(b"")
    (own / "same").write_bytes(b"same")
    (own / "other").write_bytes(b"x" * (3 if processes.rank() else 5))
    if processes.rank() == 0:
        (own / "here").write_bytes(bytes(range(256)) * 1000)
    for name in ("nothing", "same", "other", "here"):
        processes.share_file(own / name)


def test_what_processes_hand_each_other(tmp_path: Path) -> None:
    ended = ranks.run("tests.test_processes:exercise", tmp_path, world=3, machines=True)
    assert [each.status for each in ended] == [0, 0, 0], ended
    assert [each.out for each in ended] == ["I am 0\n", "", ""]  # rank 0 alone prints
    for rank in (1, 2):
        for name in ("nothing", "same", "other", "here"):
            assert (tmp_path / str(rank) / name).read_bytes() == (tmp_path / "0" / name).read_bytes()


def fail(how: str) -> None:
    processes.agree(None)
    if processes.rank() == 1:
        note("reading a picture")
        if how == "error":
            raise ValueError("street.jpg: the file ends early")
        if how == "bug":
            raise KeyError("a bug")
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(15)
    note("at step 3")
    processes.agree(None)


def test_an_error_in_one_process_ends_all_and_is_told_once() -> None:
    first, second, third = ranks.run("tests.test_processes:fail", "error", world=3)
    assert (second.status, second.err) == (2, "rcnn: process 1 of 3: street.jpg: the file ends early\n")
    assert (first.status, first.err) == (third.status, third.err) == (2, "")


def fail_in_the_middle() -> None:
    """Process 1 fails, and ends, while the group's threads work on messages of it that are being answered."""
    for number in range(5000):
        torch.distributed.all_reduce(torch.ones(100), async_op=processes.rank() == 1)
        if processes.rank() == 0:
            time.sleep(0.001)
        elif number == 4000:
            raise ValueError("street.jpg: the file ends early")


def test_a_process_that_fails_in_the_middle_of_messages_ends_with_its_own_status() -> None:
    for _ in range(3):
        first, second = ranks.run("tests.test_processes:fail_in_the_middle", world=2)
        assert (second.status, second.err) == (2, "rcnn: process 1 of 2: street.jpg: the file ends early\n")
        assert (first.status, first.err) == (2, "")


def test_a_bug_in_one_process_shows_its_traceback_and_no_other() -> None:
    first, second = ranks.run("tests.test_processes:fail", "bug", world=2)
    assert second.status == 1 and "process 1 of 2 failed" in second.err and "KeyError: 'a bug'" in second.err
    assert (first.status, first.err) == (1, "")


def test_a_process_that_was_killed_is_missed() -> None:
    first, second = ranks.run("tests.test_processes:fail", "kill", world=2)
    assert second.status == -signal.SIGKILL and first.status == 1
    assert "process 0 of 2: another process ended without a word while this one was at step 3" in first.err


def test_who_waits_too_long_says_for_whom() -> None:
    begun = time.perf_counter()
    first, _ = ranks.run("tests.test_processes:fail", "sleep", world=2, RCNN_TIMEOUT="3")
    assert first.status == 1 and time.perf_counter() - begun < 60
    assert (
        "process 0 of 2: waited 3 s for another process while at step 3: process 1 has been reading a pict" in first.err
    )
