"""Runs hostile cases through a reader: each is read, or refused with a clean error, in bounded time and memory."""

import logging
import re
import resource
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import NamedTuple

SECONDS, A_SECOND_FOR = 2.0, 10**7  # of the processor, that a case may take: so many, and one for so many bytes
AND_BYTES, TIMES = 64 << 20, 64  # memory: so many times the file's size, and so many bytes
ADDRESSES = 6 << 30  # bytes of address space beyond those at the start: an announced terabyte cannot be had


class Reader(NamedTuple):
    """A reader with the file it reads from."""

    path: Path
    read: Callable[[], object]
    seeds: list[bytes]

    @property
    def root(self) -> Path:
        """The folder made for the target, which a message must name: it names the file, or one that this one names."""
        return Path(*self.path.parts[: len(Path(tempfile.gettempdir()).parts) + 1])


class Target(NamedTuple):
    """A reader to be tried."""

    name: str
    prepare: Callable[[Path], Reader]
    strike: Callable[[Random, bytes], bytes]
    memory: int = AND_BYTES


class Tally(NamedTuple):
    """What came of the cases of a target."""

    cases: int
    accepted: int
    kinds: int  # of refusals, as their messages tell them
    slowest: float  # seconds of the processor
    memory: int  # most bytes that a case added to the resident ones
    findings: list[tuple[str, bytes]]


def run(target: Target, folder: Path, *, cases: int, seed: int) -> Tally:
    """Tries `cases` variations; the same seed gives the same ones."""
    reader, kinds, findings = target.prepare(folder), Counter[str](), []
    accepted, slowest, memory, seen = 0, 0.0, 0, set[str]()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    for content in reader.seeds:
        assert not _attempt(reader, content), f"{target.name}: a good file is refused"
    for case in range(cases):
        rng = Random(f"{seed} {case}")
        content = target.strike(rng, rng.choice(reader.seeds))
        before, begun = _reset_peak(), time.process_time()
        refusal = _attempt(reader, content)
        seconds, taken = time.process_time() - begun, max(0, _peak() - before)
        slowest, memory = max(slowest, seconds), max(memory, taken)
        fault = _fault(target, reader, content, refusal, seconds, taken)
        if fault and _kind(fault) not in seen:
            seen.add(_kind(fault))
            findings.append((fault, content))
        accepted += refusal is None
        kinds[_kind(str(refusal))] += refusal is not None
    logging.disable(logging.NOTSET)
    return Tally(cases, accepted, len(+kinds), slowest, memory, findings)


def _attempt(reader: Reader, content: bytes) -> BaseException | None:
    reader.path.write_bytes(content)
    try:
        reader.read()
    except Exception as error:
        return error
    return None


def _fault(
    target: Target, reader: Reader, content: bytes, refusal: BaseException | None, seconds: float, taken: int
) -> str:
    """What is wrong with how a case was handled; empty if nothing is."""
    if refusal is not None and not isinstance(refusal, (ValueError, OSError)):
        return f"{type(refusal).__name__}: {refusal}"
    if refusal is not None and not re.match(rf"s: \d+ image id|.*{re.escape(str(reader.root))}", str(refusal)):
        return f"does not name the file: {type(refusal).__name__}: {refusal}"
    if seconds > SECONDS + len(content) / A_SECOND_FOR:
        return f"{seconds:.1f} s of the processor"
    if taken > target.memory + TIMES * len(content):
        return f"{taken >> 20} MiB for a file of {len(content)} bytes"
    return ""


def _kind(message: str) -> str:
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d+|\(.*\)|b'.*", "_", message)[:120]


def limit_addresses() -> None:
    """Memory that is announced, not used, cannot be had beyond a bound; for a process that does nothing else."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ADDRESSES, resource.RLIM_INFINITY))


def _reset_peak() -> int:
    """Forgets the most memory that was resident; returns what is now, 0 where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _peak()


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    except OSError:
        return 0
    return int(found[1]) << 10 if found else 0
