"""Checkpoints of a run directory: all that a resume needs, written atomically, checked, read without executing code."""

import hashlib
import logging
import re
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rcnn.atomic import replacing
from rcnn.weights.pytorch import refuse_bombs

logger = logging.getLogger("rcnn.training")
NAME = re.compile(r"step_(\d{8})\.pt")
MARK = b"rcnn sha256 "  # after what torch writes, before the checksum of it
TRAILER = len(MARK) + 32


def checkpoint_paths(folder: Path) -> list[Path]:
    """The checkpoints in the folder, oldest first."""
    return sorted(p for p in folder.glob("step_*.pt") if NAME.fullmatch(p.name)) if folder.is_dir() else []


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], *, keep: int) -> Path:
    """Write the state after `step` updates, then delete all but the newest `keep`.

    Raises:
        ValueError: the disk refused it; the older checkpoints are untouched.
    """
    path = folder / f"step_{step:08d}.pt"
    try:
        with replacing(path) as file:
            hashed = _Hashed(file)
            torch.save(state, hashed)  # pyright: ignore[reportArgumentType]: all that it wants are write and flush
            file.write(MARK + hashed.sum.digest())
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        kept = checkpoint_paths(folder)
        last = f"the last good checkpoint is {kept[-1]}" if kept else "there is no earlier checkpoint"
        raise ValueError(
            f"{path}: cannot be written ({_reason(error)}); {last}; make room and go on with --resume"
        ) from error
    for old in checkpoint_paths(folder)[:-keep]:
        old.unlink()
    return path


def _reason(error: BaseException) -> str:
    """What the system said, which torch hides behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    return str(cause or error)


def newest_sound(folder: Path) -> Path | None:
    """The newest checkpoint that is as it was written, or None where there is none; damaged ones are set aside.

    Raises:
        ValueError: all of them are damaged.
    """
    paths = checkpoint_paths(folder)
    for path in reversed(paths):
        if _is_sound(path):
            return path
        logger.warning("%s: damaged, set aside as %s.damaged; trying the one before", path, path.name)
        path.replace(f"{path}.damaged")
    if paths:
        raise ValueError(
            f"{folder}: no checkpoint there is sound ({len(paths)} damaged); begin anew with another --run"
        )
    return None


def load_checkpoint(path: Path, device: torch.device) -> tuple[int, dict[str, Any]]:
    """The step and state of a checkpoint.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        refuse_bombs(path)
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path}: damaged checkpoint ({error}); delete it to resume from the one before") from error
    return int(path.stem.removeprefix("step_")), state


class _Hashed:
    """A file to write, and the checksum of what was written."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.sum = hashlib.sha256()

    def write(self, data: Any) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def _is_sound(path: Path) -> bool:
    """Whether the checksum at the end is that of the bytes before it."""
    left, found = path.stat().st_size - TRAILER, hashlib.sha256()
    with path.open("rb") as file:
        while left > 0 and (chunk := file.read(min(left, 1 << 20))):
            found.update(chunk)
            left -= len(chunk)
        return file.read() == MARK + found.digest()
