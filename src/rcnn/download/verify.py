"""Whether a file is what the catalogue says."""

import hashlib
from pathlib import Path
from typing import Protocol, runtime_checkable

from rcnn.download.catalogue import RemoteFile

BLOCK = 1 << 20


@runtime_checkable
class Watcher(Protocol):
    """Is told how it goes; the commands show it on the terminal."""

    def count(self, what: str, done: int, total: int | None) -> None:
        """`done` of `total` bytes (None: not known) of `what`; told once before the first byte, for the rate."""
        ...

    def note(self, text: str) -> None:
        """Something a person should read."""
        ...


def find_fault(path: Path, file: RemoteFile, watcher: Watcher) -> str:
    """What is wrong with the file at `path`, in words; empty if it is what it should be.

    A file without a known digest is checked by its size, and its sha256 is told.
    """
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        return f"it has {size} bytes, expected {file.size}"
    kind = "md5" if file.md5 and not file.sha256 else "sha256"
    expected = file.md5 if kind == "md5" else file.sha256
    found = _digest(path, kind, size, f"checking {file.name}", watcher)
    if not expected:
        watcher.note(f"{path}: sha256 {found}; there is nothing to compare it with")
        return ""
    return "" if found.startswith(expected) else f"its {kind} is {found}, expected {expected}"


def _digest(path: Path, kind: str, size: int, what: str, watcher: Watcher) -> str:
    digest = hashlib.new(kind, usedforsecurity=False)
    done = 0
    watcher.count(what, done, size)
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            digest.update(block)
            done += len(block)
            watcher.count(what, done, size)
    return digest.hexdigest()
