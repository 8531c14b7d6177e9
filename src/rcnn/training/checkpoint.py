"""Checkpoints of a run directory: all that a resume needs, written atomically, read without executing code."""

import re
from pathlib import Path
from typing import Any

import torch

from rcnn.atomic import replacing

NAME = re.compile(r"step_(\d{8})\.pt")


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
            torch.save(state, file)
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


def load_checkpoint(folder: Path, device: torch.device) -> tuple[int, dict[str, Any]] | None:
    """The step and state of the newest checkpoint, or None where there is none.

    Raises:
        ValueError: the newest file cannot be read.
    """
    paths = checkpoint_paths(folder)
    if not paths:
        return None
    try:
        state = torch.load(paths[-1], map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{paths[-1]}: damaged checkpoint ({error}); delete it to resume from the one before"
        ) from error
    return int(paths[-1].stem.removeprefix("step_")), state
