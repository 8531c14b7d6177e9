"""Thousands of damaged copies of a file, and what a reader may do with one: read it or refuse it, in bounded memory."""

import random
import re
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

# Numbers on which a careless reader would allocate, loop or overflow: little-endian ones, and protobuf's.
EXTREME = [
    *(value.to_bytes(size, "little") for size in (4, 8) for value in (0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)),
    *(value.to_bytes(8, "little") for value in (1 << 40, (1 << 63) - 1, (1 << 64) - 1)),
    *(b"\xff" * n + b"\x0f" for n in (1, 3, 4, 8)),
    b"\xff" * 9 + b"\x01",
]
TIMES, AND_BYTES = 4, 4 << 20  # memory that reading may take: so many times the size of the file, and a little


def damaged(content: bytes, count: int, *, seed: int, near: tuple[bytes, ...] = ()) -> Iterator[bytes]:
    """Copies with a few bytes changed, cut off, moved or repeated.

    Args:
        near: texts of the file around which half of the damage is done, besides its first and last 64 bytes: most
            bytes of a weight file are values, whose change tells a reader nothing.
    """
    rng = random.Random(seed)
    places = [0, len(content) - 32, *(content.find(text) for text in near)]
    for _ in range(count):
        copy = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            place = rng.choice(places) + rng.randint(-32, 64) if rng.random() < 0.5 else rng.randrange(len(copy) + 1)
            _strike(copy, min(max(0, place), len(copy)), rng)
        yield bytes(copy)


def _strike(copy: bytearray, place: int, rng: random.Random) -> None:
    kind, length = rng.randrange(6), rng.choice((1, 4, 8, 40, 400))
    if kind == 0:
        copy[place : place + 1] = rng.randbytes(1)
    elif kind == 1:
        number = rng.choice(EXTREME)
        copy[place : place + len(number)] = number
    elif kind == 2:
        copy[place : place + 1] = bytes([copy[place] ^ (1 << rng.randrange(8))]) if place < len(copy) else b""
    elif kind == 3 and rng.random() < 0.3:
        del copy[place:]
    elif kind == 4:
        del copy[place : place + length]
    else:
        copy[place:place] = copy[place : place + length]


def assert_all_handled(read: Callable[[Path], object], folder: Path, copies: Iterator[bytes]) -> int:
    """Reads each copy as a file; every fiftieth is weighed, which takes much longer.

    Returns:
        How many of them could be read.
    """
    return sum(assert_handled(read, folder / f"{i}", copy, weigh=i % 50 == 0) for i, copy in enumerate(copies))


def assert_handled(read: Callable[[Path], object], path: Path, content: bytes, *, weigh: bool = True) -> bool:
    """Reads `content` as a file: in bounded memory, or with an error that names the file, the place and the reason.

    Returns:
        Whether it was read.
    """
    path.write_bytes(content)
    message, taken = _weighed(read, path) if weigh else (_attempt(read, path), 0)
    assert taken <= TIMES * len(content) + AND_BYTES, f"{taken} bytes for a file of {len(content)}: {content[:200]!r}"
    if message:
        told = r": (damaged at byte \d+: \S.*; copy or download it again|no layer with weights|cannot be read)"
        assert re.match(re.escape(str(path)) + told, message), message
    path.unlink()
    return not message


def _weighed(read: Callable[[Path], object], path: Path) -> tuple[str, int]:
    """The error, if any, and the most memory that was taken at a time; what is mapped of the file does not count."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        message = _attempt(read, path)
        return message, tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def _attempt(read: Callable[[Path], object], path: Path) -> str:
    try:
        read(path)
    except ValueError as error:
        return str(error)
    return ""
