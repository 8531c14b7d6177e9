"""Names inside archives, which may be hostile: only plain relative ones are accepted, each once."""

import re
import unicodedata

OUTSIDE = re.compile(r"^/|[\\:\0]|(?:^|/)\.\.(?:/|$)")  # absolute, a drive or stream of Windows, or upwards
MOST = 500_000  # members; COCO's largest archive has 118 288


class Names:
    """The names of one archive. Two that differ only in case are one file on some disks, so they are refused."""

    def __init__(self) -> None:
        self._files: set[tuple[str, ...]] = set()
        self._folders: set[tuple[str, ...]] = set()
        self._count = 0

    def accept(self, name: str, *, folder: bool) -> str:
        """The name as a clean relative path; empty for the top folder itself.

        Raises:
            ValueError: the name leads out, cannot be printed, or is taken.
        """
        self._count += 1
        if self._count > MOST:
            raise ValueError(f"holds more than {MOST} members")
        if OUTSIDE.search(name):
            raise ValueError(f"{name!r} leads out of its folder")
        if not name.isprintable():
            raise ValueError(f"{name!r} is no printable name")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts and not folder:
            raise ValueError(f"{name!r} is no name of a file")
        self._take(tuple(unicodedata.normalize("NFC", part).casefold() for part in parts), name, folder)
        return "/".join(parts)

    def _take(self, key: tuple[str, ...], name: str, folder: bool) -> None:
        above = {key[:end] for end in range(1, len(key))}
        if key in self._files or above & self._files or (not folder and key in self._folders):
            raise ValueError(f"{name!r} comes twice, as a file and a folder, or in another case")
        self._folders |= above
        (self._folders if folder else self._files).add(key)
