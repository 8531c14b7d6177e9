"""An item of the catalogue to where the recipes look for it."""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rcnn.atomic import replacing
from rcnn.download.catalogue import Item, RemoteFile, in_words
from rcnn.download.fetch import DownloadError, fetch
from rcnn.download.merge import merge
from rcnn.download.unpack import unpack
from rcnn.download.verify import Watcher

ARCHIVES = "downloads"  # inside --data-dir: archives, and a stamp for each that was unpacked


@dataclass(frozen=True)
class Places:
    """Where things go."""

    data: Path  # data sets
    weights: Path
    keep: bool = False  # archives, once they are unpacked

    def archive(self, file: RemoteFile) -> Path:
        """Where an archive is fetched to."""
        return self.data / ARCHIVES / file.name


def install(item: Item, places: Places, watcher: Watcher) -> Path:
    """Fetches, checks and unpacks what is not there yet. Returns the file, or the folder of a data set.

    Raises:
        ValueError: something else is in the place, or an archive is damaged or hostile.
        OSError: it could not be downloaded or written; what was fetched is kept.
    """
    if item.weights:
        target = places.weights / item.files[0].name
        fetch(item.files[0], target, watcher)
        return target
    folder = Path(os.path.realpath(places.data / item.folder))
    for file in item.files:
        if is_unpacked(file, folder, places):
            watcher.note(f"{file.name}: is unpacked already in {folder}")
            continue
        archive = places.archive(file)
        fetch(file, archive, watcher)
        _unpack_into(folder, archive, file, watcher)
        with replacing(_stamp(archive)) as stream:
            stream.write(json.dumps(_identity(file)).encode())
        if not places.keep:
            archive.unlink()
    return folder


def is_unpacked(file: RemoteFile, folder: Path, places: Places) -> bool:
    """Whether the archive's stamp says that it was unpacked there, and what it must hold is there."""
    try:
        stamp: Any = json.loads(_stamp(places.archive(file)).read_bytes())
    except (OSError, ValueError):
        return False
    return stamp == _identity(file) and not _missing(file, folder)


def refuse_full_disk(items: Sequence[Item], places: Places) -> None:
    """Before hours of download: is there room for the archives and what they unpack to, at least as much again?

    Raises:
        ValueError: a file is in the place of a folder.
        DownloadError: there is no room.
    """
    needs = {places.data: 0, places.weights: 0}
    for item in items:
        needs[places.weights if item.weights else places.data] += _needed(item, places)
    for place, needed in needs.items():
        free = shutil.disk_usage(_existing(place)).free
        if needed > free:
            text = f"needs about {in_words(needed)}, and {in_words(free)} are free on its disk"
            raise DownloadError(f"{place}: {text}; make room, or choose another folder")


def _needed(item: Item, places: Places) -> int:
    if item.weights:
        path = places.weights / item.files[0].name
        return 0 if path.exists() else item.expected - _fetched(path)
    folder = Path(os.path.realpath(places.data / item.folder))
    missing = [file for file in item.files if not is_unpacked(file, folder, places)]
    sizes = [file.expected for file in missing]
    archives = sum(sizes) if places.keep else max(sizes, default=0)
    return max(0, sum(sizes) + archives - sum(_fetched(places.archive(file)) for file in missing))


def _fetched(path: Path) -> int:
    part = path.with_name(f"{path.name}.part")
    return next((p.stat().st_size for p in (path, part) if p.exists()), 0)


def _existing(folder: Path) -> Path:
    there = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"{there}: is a file, not a folder; choose another folder")
    return there


def _unpack_into(folder: Path, archive: Path, file: RemoteFile, watcher: Watcher) -> None:
    beside = folder / f".{archive.name}.unpacking"  # inside, so that it is on the same disk
    if beside.exists():  # from a run that was killed
        shutil.rmtree(beside)
    unpack(archive, beside, watcher)
    try:
        missing = _missing(file, beside)
        if missing:
            raise ValueError(f"{archive}: does not hold {missing[0]}; delete it and run the same command again")
        _drop_strangers(file, beside, watcher)
        merge(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _drop_strangers(file: RemoteFile, folder: Path, watcher: Watcher) -> None:
    """Removes what is at the top of the archive but no part of the data set, as some systems' tars have it."""
    known = {path.split("/")[0] for path in file.holds}
    for path in folder.iterdir():
        if path.name not in known:
            watcher.note(f"{file.name}: {path.name} in it is no part of the data set and is left out")
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _missing(file: RemoteFile, folder: Path) -> list[str]:
    return [path for path in file.holds if not (folder / path).exists()]


def _stamp(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.unpacked.json")


def _identity(file: RemoteFile) -> dict[str, str | int]:
    return {"size": file.expected, "digest": file.sha256 or file.md5}
