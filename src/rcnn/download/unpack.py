"""An archive into a new folder: bounded, nothing outside the folder, plain files only."""

import shutil
from pathlib import Path

from rcnn.download.catalogue import in_words
from rcnn.download.members import Member, read_members
from rcnn.download.names import Names
from rcnn.download.verify import Watcher

MOST_EXPANSION = 20  # bytes unpacked for each of the archive; annotations of COCO are about 3, pictures and tars 1
SMALL = 10**6  # bytes that any archive may unpack to


def unpack(archive: Path, folder: Path, watcher: Watcher) -> None:
    """Unpacks the tar or zip `archive` into `folder`, which must not exist yet; on an error the folder is removed.

    Raises:
        ValueError: the archive is damaged, leads out of the folder, holds links or devices, or unpacks to far more
            than it should.
        OSError: the system's own (no space).
    """
    folder.mkdir(parents=True)
    try:
        _Unpacking(archive, folder, watcher).run()
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


class _Unpacking:
    def __init__(self, archive: Path, folder: Path, watcher: Watcher):
        self.archive, self.folder, self.watcher = archive, folder, watcher
        self.size = archive.stat().st_size
        self.left = self.limit = self.size * MOST_EXPANSION + SMALL
        self.what = f"unpacking {archive.name}"
        self.names = Names()

    def run(self) -> None:
        self.watcher.count(self.what, 0, self.size)
        with open(self.archive, "rb") as stream:
            try:
                for member in read_members(self.archive, stream):
                    self.add(member)
                    self.watcher.count(self.what, stream.tell(), self.size)
                self.watcher.count(self.what, self.size, self.size)
            except ValueError as error:
                text = f"{self.archive}: {error}; nothing was unpacked. Delete it and run the same command again"
                raise ValueError(text) from error
            except OSError as error:
                text = f"cannot unpack {self.archive}: {error.strerror}; nothing was unpacked, and the archive is kept"
                raise OSError(error.errno, f"{text}: make room and run the same command again") from error

    def add(self, member: Member) -> None:
        path = self.folder / self.names.accept(member.name, folder=member.folder)
        if member.folder:
            path.mkdir(parents=True, exist_ok=True)
            return
        self.spend(member.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        written = 0
        with open(path, "xb") as file:
            for block in member.blocks():
                written += len(block)
                if written > member.size:
                    break
                file.write(block)
        if written != member.size:
            raise ValueError(f"damaged ({member.name!r} does not have the {member.size} bytes that it declares)")

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise ValueError(f"unpacks to more than {in_words(self.limit)}, which is no data set but a trap")
