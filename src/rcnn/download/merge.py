"""A folder's files into another one: nothing that is there is changed, and no link is followed."""

import filecmp
import os
from collections.abc import Iterator
from pathlib import Path


def merge(source: Path, target: Path) -> None:
    """Moves what is in `source` into `target`, on the same disk; files that are there already, byte for byte, stay.

    Everything is compared before anything is moved; after an interruption the same call goes on.

    Raises:
        ValueError: a file of that name but with other content is there, or a link.
    """
    for fault in _conflicts(source, target):
        raise ValueError(f"{fault}; nothing was changed. Move it away, or choose another folder with --data-dir")
    target.mkdir(parents=True, exist_ok=True)
    _move(source, target)


def _conflicts(source: Path, target: Path) -> Iterator[str]:
    for entry in sorted(os.scandir(source), key=lambda e: e.name):
        there = target / entry.name
        if there.is_symlink():
            yield f"{there}: is a link, and links are not followed"
        elif entry.is_dir() and there.is_dir():
            yield from _conflicts(source / entry.name, there)
        elif there.exists() and not (there.is_file() and entry.is_file() and _same(entry.path, there)):
            yield f"{there}: is there already, and not what the archive has"


def _same(one: str, other: Path) -> bool:
    return filecmp.cmp(one, other, shallow=False)


def _move(source: Path, target: Path) -> None:
    with os.scandir(source) as entries:
        for entry in entries:
            there = target / entry.name
            if not there.exists():
                os.rename(entry.path, there)
            elif entry.is_dir():
                _move(source / entry.name, there)
