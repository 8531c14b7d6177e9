"""The members of a tar (plain or compressed) or zip archive: only files and folders are allowed."""

import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple

BLOCK = 1 << 18


class Member(NamedTuple):
    """A file or folder of an archive."""

    name: str
    folder: bool
    size: int  # bytes of the file, as the archive declares it
    open: Callable[[], IO[bytes] | None]

    def blocks(self) -> Iterator[bytes]:
        """The file's bytes.

        Raises:
            ValueError: the archive is damaged there.
        """
        with damage_as_value_error():
            stream = self.open()
        assert stream is not None, self.name
        with stream:
            while True:
                with damage_as_value_error():
                    block = stream.read(BLOCK)
                if not block:
                    return
                yield block


def read_members(archive: Path, stream: BinaryIO) -> Iterator[Member]:
    """The members of the archive at `archive`, opened as `stream`.

    Raises:
        ValueError: it is no archive we know or damaged, or holds something that is neither file nor folder.
    """
    with damage_as_value_error():
        members = _zip_members(stream) if archive.suffix == ".zip" else _tar_members(stream)
    while True:
        with damage_as_value_error():
            member = next(members, None)
        if member is None:
            return
        yield member


@contextmanager
def damage_as_value_error() -> Iterator[None]:
    """What the readers of archives raise on damage can be nearly anything; wrap only reading in this, never writing."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"damaged ({str(error) or type(error).__name__})") from error


def _tar_members(stream: BinaryIO) -> Iterator[Member]:
    with tarfile.open(fileobj=stream, mode="r:*") as tar:
        for info in tar:
            if not (info.isreg() or info.isdir()) or info.size < 0:
                raise ValueError(f"{info.name!r} is neither file nor folder, but {_kind(info)}")
            yield Member(info.name, info.isdir(), info.size, lambda info=info: tar.extractfile(info))


def _kind(info: tarfile.TarInfo) -> str:
    if info.issym() or info.islnk():
        return f"a link to {info.linkname!r}"
    return "a device" if info.isdev() else f"of type {info.type!r}"


def _zip_members(stream: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{info.orig_filename!r} is neither file nor folder, but a link or a device")
            # orig_filename: zipfile cuts filename at a zero byte, and a check should see what is written
            yield Member(info.orig_filename, info.is_dir(), info.file_size, lambda info=info: archive.open(info))
