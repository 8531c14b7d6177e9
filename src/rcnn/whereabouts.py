"""Where each process of a group is, and what the user is told when they end: whose fault it was, who did not answer."""

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

from torch.distributed.distributed_c10d import Store

Answer = TypeVar("Answer")
TIMEOUT = float(os.environ.get("RCNN_TIMEOUT", 1800))  # seconds that a process waits for another
GRACE = 1.0  # seconds that a process leaves the others to say what is wrong
HEARTBEAT = 2.0  # seconds between a process's notes of where it is
PATIENCE = 5.0  # seconds in which the group's store answers, unless this machine or that one is cut off
LOST = ("onnection", "imed out", "imeout", "peer", "Socket", "NCCL", "gloo", "recvBytes", "sendBytes")

_doing, _since = "starting", time.time()


def note(doing: str) -> None:
    """Say what this process is doing, as in "process 1 has been ..."; costs nothing, another thread passes it on."""
    global _doing, _since
    _doing, _since = doing, time.time()


def exit_status(error: BaseException) -> int:
    """With what a process ends because of the error, as the command line has it."""
    return int(error.code or 0) if isinstance(error, SystemExit) else 2 if isinstance(error, ValueError) else 1


class LostError(OSError):
    """Another process ended or does not answer."""


class Place(NamedTuple):
    """Where a process was when it noted it."""

    doing: str
    seconds: float  # since it began to; another note has another number
    host: str


class Fault(NamedTuple):
    """Why a group ends: what the first of its processes to fail said of it."""

    rank: int
    status: int
    host: str
    told: str


class Whereabouts:
    """Writes into the group's store where this process is, and reads there whom it waits for and who failed first."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self.store = store
        self.rank = rank
        self.world = world
        self.ended = threading.Event()
        self.repeated = threading.Lock()  # held once another machine's fault was told here
        self.thread = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> "Whereabouts":
        note("starting")
        self.thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.ended.set()  # a daemon thread in the store at exit would abort the process; one that failed leaves at once
        self.thread.join(GRACE if kind else 10 * HEARTBEAT)

    def _write(self) -> None:
        with suppress(RuntimeError):  # the store has gone: so has the group
            while True:
                place = Place(_doing, time.time() - _since, socket.gethostname())
                self.store.set(f"at {self.rank}", json.dumps(place))
                if self.store.check(["fault"]):  # and this process may wait for one that knows nothing of it either
                    self._follow(Fault(*json.loads(self.store.get("fault"))))
                if self.ended.wait(HEARTBEAT):
                    return

    def _follow(self, fault: Fault) -> None:
        if fault.rank != self.rank and not self.ended.wait(GRACE):
            self._repeat(fault)
            os._exit(fault.status)

    def _repeat(self, fault: Fault) -> None:
        """Tell it on this machine too, where another's terminal is not seen; once."""
        here = fault.host == socket.gethostname() or os.environ.get("LOCAL_RANK", "0") != "0"
        if not here and self.repeated.acquire(blocking=False) and sys.__stderr__:
            print(f"rcnn: {fault.told} (on {fault.host})", file=sys.__stderr__, flush=True)

    def blame(self, error: Exception) -> BaseException:
        """What this process shall end with: the error with its rank if it is the first, else the first one's status."""
        status = exit_status(error)
        lost = isinstance(error, RuntimeError) and any(word in str(error) for word in LOST)
        if lost:  # give the one whose fault it is the time to say so
            time.sleep(GRACE)
        who = f"process {self.rank} of {self.world}"
        told = f"{who}: {self._explain(error) if lost else error}"
        bug = not lost and not isinstance(error, ValueError | OSError)
        mine = Fault(self.rank, status, socket.gethostname(), f"{who} failed: {error!r}" if bug else told)
        answer = self._ask(lambda: self.store.compare_set("fault", "", json.dumps(mine)))
        if self.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            time.sleep(HEARTBEAT + 2 * GRACE)  # the store ends with this process
        if answer is not None and (first := Fault(*json.loads(answer))).rank != self.rank:
            self._repeat(first)
            return SystemExit(first.status)
        if lost:
            return LostError(told)
        if not bug:
            return (ValueError if status == 2 else OSError)(told)
        print(f"rcnn: {who} failed:", file=sys.stderr)
        return error

    def _explain(self, error: Exception) -> str:
        """Why the others do not answer, as far as one can know."""
        if "imed out" not in str(error) and "imeout" not in str(error):
            reason = str(error).splitlines()[0].rpartition("] ")[2][:200]
            return (
                f"another process ended without a word while this one was {_doing} (killed, or out of memory?); "
                f"go on with --resume ({reason})"
            )
        waited = f"waited {TIMEOUT:.0f} s for another process while {_doing}"
        before = now = self._ask(self._places)
        if before is not None:
            time.sleep(1.5 * HEARTBEAT)
            now = self._ask(self._places)
        if before is None or now is None:
            store = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            return f"{waited}, and the group's store at {store} does not answer: is it cut off, or this machine?"
        silent = {other: place == before.get(other) for other, place in now.items()}
        order = sorted(now, key=lambda other: (not silent[other], -now[other].seconds))
        return (
            f"{waited}: {'; '.join(_tell(other, now[other], silent[other]) for other in order[:3])}. "
            f"RCNN_TIMEOUT sets the seconds to wait"
        )

    def _places(self) -> dict[int, Place]:
        """Where the others say they are."""
        keys = {f"at {other}": other for other in range(self.world) if other != self.rank}
        there = [*keys] if self.store.check([*keys]) else [key for key in keys if self.store.check([key])]
        return {keys[key]: Place(*json.loads(x)) for key, x in zip(there, self.store.multi_get(there), strict=True)}

    def _ask(self, question: Callable[[], Answer]) -> Answer | None:
        """What the store answers, or nothing where it does not: the store itself may wait much longer."""
        answers: SimpleQueue[Answer | None] = SimpleQueue()

        def ask() -> None:
            try:
                answers.put(question())
            except RuntimeError:
                answers.put(None)

        threading.Thread(target=ask, daemon=True).start()
        with suppress(Empty):
            return answers.get(timeout=PATIENCE)


def _tell(other: int, place: Place, silent: bool) -> str:
    who = f"process {other}" + (f" on {place.host}" if place.host != socket.gethostname() else "")
    if silent:
        return f"{who} does not answer (killed, frozen, cut off?) and was {place.doing} when last heard of"
    return f"{who} has been {place.doing} for {place.seconds:.0f} s"
