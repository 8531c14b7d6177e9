"""The processes of one run: which one this is, and what they hand each other.

They are started by torchrun, or by `--devices`, which is torchrun's launcher. Without it there is one process, and
everything here does nothing.
"""

import atexit
import gc
import hashlib
import importlib
import io
import json
import logging
import os
import secrets
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from rcnn.atomic import replacing
from rcnn.whereabouts import TIMEOUT, LostError, Whereabouts, exit_status, note

Item = TypeVar("Item")
AHEAD = 8  # results that a process makes before rank 0 has taken them
CHUNK = 1 << 26  # bytes of a file sent at a time


def started() -> bool:
    """Whether torchrun started this process."""
    return "WORLD_SIZE" in os.environ and "RANK" in os.environ


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_restarted(job: Path) -> bool:
    """Whether torchrun started this group anew, after the one that signed the file: see `sign`."""
    if name := _job():  # one that refused what it found comes back too, and shall not take it for its own
        return job.is_file() and job.read_text() == name
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def sign(job: Path) -> None:
    """Write into the file which of torchrun's jobs this is, if it is one with a name."""
    if name := _job():
        with replacing(job) as file:
            file.write(name.encode())


def _job() -> str:
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return "" if name == "none" else name  # torchrun's default


def own_device(name: str) -> str:
    """The device of this process, where the user gave one name to all of them: the next CUDA device for each.

    Raises:
        ValueError: there are fewer devices than processes, or one device is named for all.
    """
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if not started() or here == 1 or name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return name
    if name not in ("auto", "cuda"):
        raise ValueError(f"--device {name}: is one device for {here} processes; use auto, cuda or cpu")
    if torch.cuda.device_count() < here:
        raise ValueError(
            f"--devices {here}: this machine has {torch.cuda.device_count()} CUDA devices; use fewer processes, or "
            f"--device cpu"
        )
    return f"cuda:{os.environ['LOCAL_RANK']}"


@contextmanager
def joined(device: str) -> Iterator[None]:
    """The process is one of its group within the block; of all of them rank 0 alone prints.

    The first process that fails says why, with its rank; the others end without a word and with the same status.
    One that waits longer than RCNN_TIMEOUT seconds says for whom.
    """
    if not started() or int(os.environ["WORLD_SIZE"]) == 1:
        yield
        return
    _write_whole_lines()
    importlib.import_module("torch.distributed.nn")  # imported later, it would hold the group for ever, as its default
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    limit = timedelta(seconds=TIMEOUT)
    store, number, count = next(rendezvous("env://", timeout=limit))
    store = _own_part(store, number, count)
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit)
    with Whereabouts(PrefixStore("rcnn", store), number, count) as whereabouts:
        try:
            with _quiet() if number else ExitStack():
                yield
        except Exception as error:
            blamed = whereabouts.blame(error)
            atexit.register(_leave, exit_status(blamed))
            raise blamed from error
    gc.collect()  # a model in a cycle holds the group, whose threads abort a process that ends before they do
    dist.destroy_process_group()


def _leave(status: int) -> None:
    """End the process here and now, at exit from a group that failed.

    Its threads may still be letting go of messages; one that does so while the interpreter is taken down aborts the
    process, and the status would say nothing of the fault.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or nobody reads it any more
            stream.flush()
    os._exit(status)


def _write_whole_lines() -> None:
    """Let a line be one write even where Python does not buffer, or lines of several processes get mixed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, write_through=False)


def _own_part(store: Store, number: int, count: int) -> Store:
    """A part of the store in which nothing stands yet.

    When torchrun starts a group anew, its store still holds what the former one wrote, addresses of processes that have
    gone among it. So each process says a word that is new, and takes the name of the part from the answer to it.
    """
    word, name, until = secrets.token_hex(8), secrets.token_hex(8), time.monotonic() + TIMEOUT
    missing = {*range(1, count)} if number == 0 else {number}
    store.set(f"hello {number}", word)
    while missing and time.monotonic() < until:
        if number == 0:
            missing = {other for other in missing if not _answer(store, other, name)}
        elif store.check([f"answer {number}"]) and (said := store.get(f"answer {number}").decode()).startswith(word):
            name, missing = said.removeprefix(word), set()
            store.set(f"heard {number}", name)
        time.sleep(0.01)
    if missing:
        who = ", ".join(map(str, sorted(missing)[:8])) if number == 0 else "0"
        raise LostError(f"process {number} of {count}: waited {TIMEOUT:.0f} s for process {who} to start")
    return PrefixStore(name, store)


def _answer(store: Store, other: int, name: str) -> bool:
    """Tell the other process the name, if it has said something; whether it has heard it."""
    if store.check([f"hello {other}"]):
        store.set(f"answer {other}", store.get(f"hello {other}").decode() + name)
    return store.check([f"heard {other}"]) and store.get(f"heard {other}").decode() == name


@contextmanager
def _quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield
    logging.disable(logging.NOTSET)


def agree(value: Any) -> Any:
    """Rank 0's value, of JSON, in all processes."""
    if world() == 1:
        return value
    return json.loads(_broadcast(json.dumps(value).encode()))


def gather(values: Tensor) -> Tensor:
    """The values of all processes, a row for each; on the CPU."""
    if world() == 1:
        return values.cpu()[None]
    rows = [torch.empty_like(values, device="cpu") for _ in range(world())]
    dist.all_gather(rows, values.cpu())
    return torch.stack(rows)


def make_alike(tensors: Iterable[Tensor]) -> None:
    """Give the tensors rank 0's values."""
    for tensor in tensors:
        dist.broadcast(tensor, 0)


def share_file(path: Path) -> None:
    """Let every machine have the file that rank 0 has. Does nothing where they share their storage."""
    if world() == 1:
        return
    digest = _digest(path) if int(os.environ["LOCAL_RANK"]) == 0 else None
    wanted = agree(digest)
    lacks = digest is not None and digest != wanted
    if gather(torch.tensor([lacks])).any():
        _send_file(path, lacks)
    agree(None)  # the others of a machine wait for the one that writes


def _digest(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _send_file(path: Path, lacks: bool) -> None:
    chunks = _broadcast_chunks(path)
    if not lacks:
        deque(chunks, maxlen=0)
        return
    with replacing(path) as file:
        for chunk in chunks:
            file.write(chunk)


def _broadcast_chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") if rank() == 0 else ExitStack() as file:
        while chunk := _broadcast(file.read(CHUNK) if rank() == 0 else b""):  # pyright: ignore[reportAttributeAccessIssue]
            yield chunk


def _broadcast(data: bytes) -> bytes:
    length = torch.tensor([len(data)])
    dist.broadcast(length, 0)
    held = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data and rank() == 0 else torch.empty(0)
    held = held if rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
    if length:
        dist.broadcast(held, 0)
    return held.numpy().tobytes()


def in_turns(
    own: Iterator[Item], total: int, pack: Callable[[Item], bytes], unpack: Callable[[bytes], Item]
) -> Iterator[Item]:
    """On rank 0 the items of all processes, of which number k is made by rank k modulo world; on the others nothing.

    Rank 0 holds no more of them than it is given time for: a process makes `AHEAD` items in advance and then waits.

    Args:
        total: items of all processes.
    """
    if rank() == 0:
        for number in range(total):
            source = number % world()
            note(f"waiting for result {number} of process {source}")
            yield next(own) if source == 0 else unpack(_receive(source, number))
        return
    sent: deque[tuple[Any, Tensor]] = deque()
    for number, item in zip(range(rank(), total, world()), own, strict=True):
        for part, held in enumerate(_as_tensors(pack(item))):
            sent.append((dist.isend(held, 0, tag=2 * number + part), held))
        while len(sent) > 2 * AHEAD:
            sent.popleft()[0].wait()
    for work, _ in sent:
        work.wait()


def _as_tensors(data: bytes) -> tuple[Tensor, Tensor]:
    return torch.tensor([len(data)]), torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _receive(source: int, number: int) -> bytes:
    length = torch.zeros(1, dtype=torch.int64)
    dist.recv(length, source, tag=2 * number)
    held = torch.empty(int(length), dtype=torch.uint8)
    dist.recv(held, source, tag=2 * number + 1)
    return held.numpy().tobytes()


class Vote:
    """Whether any process asks for something, known to all of them at the same call: the one after it was asked.

    So nobody waits for the answer: it arrives while the next step is computed.
    """

    def __init__(self) -> None:
        self._pending: tuple[Any, Tensor] | None = None

    def __call__(self, asked: bool) -> bool:
        if world() == 1:
            return asked
        before = self.close()
        votes = torch.tensor([int(asked)])
        self._pending = (dist.all_reduce(votes, dist.ReduceOp.MAX, async_op=True), votes)
        return before

    def close(self) -> bool:
        """The answer to the last call."""
        if self._pending is None:
            return False
        work, votes = self._pending
        work.wait()
        self._pending = None
        return bool(votes)
