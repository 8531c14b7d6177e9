"""A file that is still being fetched: what is there of it, and where it came from."""

import json
import os
from pathlib import Path
from typing import Any

from rcnn.atomic import replacing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Part:
    """NAME.part beside the file `target`, with its origin in NAME.part.json; open within a with block.

    The bytes stay when the block ends, so that the next run goes on; an empty file does not.

    Raises:
        ValueError: another process is fetching the same file.
    """

    def __init__(self, target: Path):
        self.target = target
        self.path = target.with_name(f"{target.name}.part")
        self.origin_path = target.with_name(f"{target.name}.part.json")
        self.size = 0

    def __enter__(self) -> "Part":
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "ab", buffering=0)
        try:
            if fcntl is not None:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(f"{self.path}: another rcnn download is fetching it; wait for that one") from error
        self.size = os.fstat(self._file.fileno()).st_size
        return self

    def __exit__(self, *_: object) -> None:
        empty = self.size == 0 and not self._file.closed
        self._file.close()
        if empty:
            self.path.unlink(missing_ok=True)
            self.origin_path.unlink(missing_ok=True)

    def validator_from(self, url: str) -> str | None:
        """What the server at `url` gave to tell versions of the file apart; None if the bytes are from elsewhere."""
        try:
            origin: Any = json.loads(self.origin_path.read_bytes())
            return str(origin["validator"]) if origin["url"] == url else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def begin(self, start: int, url: str, validator: str) -> None:
        """Keep the first `start` bytes; what is written from now on comes from `url`."""
        self._file.truncate(start)
        self.size = start
        with replacing(self.origin_path) as file:
            file.write(json.dumps({"url": url, "validator": validator}).encode())

    def write(self, block: bytes) -> None:
        """Append.

        Raises:
            OSError: the system's own (no space), with a message that says what is kept.
        """
        rest = memoryview(block)
        try:
            while rest:
                written = self._file.write(rest)
                self.size += written
                rest = rest[written:]
        except OSError as error:
            kept = f"its {self.size} bytes are kept: make room and run the same command again to go on"
            raise OSError(error.errno, f"cannot write {self.path}: {error.strerror}; {kept}") from error

    def discard(self) -> None:
        """Begin anew."""
        self._file.truncate(0)
        self.size = 0
        self.origin_path.unlink(missing_ok=True)

    def finish(self) -> None:
        """The file is whole: give it its name."""
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self.path, self.target)
        self.origin_path.unlink(missing_ok=True)
