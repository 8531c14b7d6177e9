import os
import signal
import subprocess
import sys
import time

import pytest
from torch.distributed import HashStore, Store

from rcnn import processes, whereabouts
from rcnn.whereabouts import LostError, Place, Whereabouts, note
from tests import ranks

TIMED_OUT = RuntimeError("Timed out waiting 1000ms for recv operation to complete")


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"GRACE": 0.01, "HEARTBEAT": 0.2, "PATIENCE": 0.5, "TIMEOUT": 7.0}.items():
        monkeypatch.setattr(whereabouts, name, seconds)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    note("at step 3")


def test_who_waits_is_told_what_the_others_do_the_one_that_is_longest_at_it_first() -> None:
    group = [Whereabouts(HashStore(), 0, 3)]
    group += [Whereabouts(group[0].store, rank, 3) for rank in (1, 2)]
    with group[1], group[2]:
        note("reading a picture")
        time.sleep(0.5)
        error = group[0].blame(TIMED_OUT)
    assert isinstance(error, LostError)
    assert str(error).startswith("process 0 of 3: waited 7 s for another process while reading a picture: process ")
    assert "process 2 has been reading a picture for 1 s" in str(error) and "does not answer" not in str(error)
    assert isinstance(second := group[1].blame(ValueError("no")), SystemExit) and second.code == 1


def test_a_process_that_no_longer_says_where_it_is_comes_first() -> None:
    store = HashStore()
    with Whereabouts(store, 1, 3):
        store.set("at 2", '["at step 2", 90.0, "host-c"]')
        error = Whereabouts(store, 0, 3).blame(TIMED_OUT)
    silent = "process 2 on host-c does not answer (killed, frozen, cut off?) and was at step 2 when last heard of"
    assert f"while starting: {silent}; process 1 has been starting for" in str(error)


class Dead(Store):
    def check(self, keys: list[str]) -> bool:
        time.sleep(3)
        return False

    def compare_set(self, key: str, expected: str, desired: str) -> bytes:
        raise RuntimeError("Connection reset by peer")


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "host-a")
    monkeypatch.setenv("MASTER_PORT", "29500")
    error = Whereabouts(Dead(), 1, 2).blame(TIMED_OUT)
    assert str(error) == (
        "process 1 of 2: waited 7 s for another process while at step 3, and the group's store at host-a:29500 does "
        "not answer: is it cut off, or this machine?"
    )


def test_the_first_error_is_told_as_it_is() -> None:
    first, second = (Whereabouts(store, rank, 2) for store in [HashStore()] for rank in (0, 1))
    error = second.blame(ValueError("street.jpg: the file ends early"))
    assert isinstance(error, ValueError) and str(error) == "process 1 of 2: street.jpg: the file ends early"
    assert isinstance(other := first.blame(RuntimeError("Connection closed by peer")), SystemExit) and other.code == 2


def test_the_error_of_another_machine_is_told_here_too_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.__stderr__", sys.stderr)
    group = [Whereabouts(HashStore(), 0, 3)]
    group += [Whereabouts(group[0].store, rank, 3) for rank in (1, 2)]
    with monkeypatch.context() as there:
        there.setattr("socket.gethostname", lambda: "host-b")
        group[2].blame(KeyError("a bug"))
    capfd.readouterr()
    for _ in range(2):
        assert isinstance(ended := group[0].blame(RuntimeError("Connection closed by peer")), SystemExit)
        assert ended.code == 1
    assert capfd.readouterr().err == "rcnn: process 2 of 3 failed: KeyError('a bug') (on host-b)\n"
    monkeypatch.setenv("LOCAL_RANK", "1")  # its neighbour has said so
    group[1].blame(RuntimeError("Connection closed by peer"))
    assert capfd.readouterr().err == ""


def test_what_is_known_of_a_peer_that_ended() -> None:
    error = Whereabouts(HashStore(), 0, 2).blame(
        RuntimeError("[/a/b/pair.cc:5] Read error [10.0.0.2]:1: Connection reset")
    )
    told = "while this one was at step 3 (killed, or out of memory?); go on with --resume (Read error [10.0.0.2]:1: Con"
    assert told in str(error)


def test_a_place_is_what_another_process_reads() -> None:
    assert Place(*["at step 3", 1.5, "host-a"]).host == "host-a"


# --- several processes ----------------------------------------------------------------------------------------------


def freeze() -> None:
    processes.agree(None)
    if processes.rank() == 1:
        note("reading a picture")
        time.sleep(2 * 2.0)  # it is noted every two seconds
        subprocess.Popen(["sh", "-c", f"sleep 15; kill -9 {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
    note("at step 3")
    processes.agree(None)


def test_a_process_that_is_frozen_does_not_answer() -> None:
    first, _ = ranks.run(
        "tests.test_whereabouts:freeze", world=2, RCNN_TIMEOUT="8", TORCHELASTIC_USE_AGENT_STORE="False"
    )
    assert first.status == 1
    assert "waited 8 s for another process while at step 3: process 1 does not answer (killed" in first.err
    assert " and was reading a picture when last heard of" in first.err
