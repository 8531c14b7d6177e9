"""Names given by people and by annotation files, turned into paths that exist, or refused clearly."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

SHOWN = 12  # names listed in an error
LEADS_OUT = re.compile(r"^(?:[/\\]|[A-Za-z]:)|(?:^|[/\\])\.\.(?:[/\\]|$)")


def existing_root(root: str | os.PathLike[str]) -> Path:
    """The folder of a data set.

    Raises:
        ValueError: if it is not there, or is a file.
    """
    path = Path(root).expanduser()
    if not path.is_dir():
        problem = "is a file, not a folder" if path.exists() else "no such folder"
        raise ValueError(f"{path}: {problem}; --data.root is the folder that holds the data set")
    return path


def split_sets(image_set: str) -> list[str]:
    """The sets joined by + in `image_set`, each once.

    Raises:
        ValueError: if a name is empty or comes twice.
    """
    parts = [part.strip() for part in image_set.split("+")]
    if not all(parts):
        raise ValueError(f"set '{image_set}': a name is empty; join sets as in 2007_trainval+2012_trainval")
    for part in parts:
        if parts.count(part) > 1:
            raise ValueError(f"set '{image_set}': '{part}' comes twice; name every set once")
    return parts


def inside(relative: str, *, where: str) -> str:
    """A relative path from an annotation file, with forward slashes.

    Raises:
        ValueError: if it is empty, absolute or leads out of the data set's folder.
    """
    if not relative or LEADS_OUT.search(relative) or "\0" in relative:
        raise ValueError(
            f"{where}: image path {relative!r} leads out of the data set's folder or is empty; "
            f"write it relative to the folder of the images"
        )
    return relative.replace("\\", "/")


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest known one, and what is known."""
    known = list(known)
    by_folded = {k.casefold(): k for k in known}
    close = difflib.get_close_matches(name.casefold(), by_folded, n=1)
    hint = f"did you mean '{by_folded[close[0]]}'? " if close else ""
    return f"{hint}known: {list_names(known)}"


def list_names(names: Sequence[str]) -> str:
    """Names for a message, cut to the first few dozen."""
    limit = 2 * SHOWN
    return (", ".join(names[:limit]) or "none") + (f", ... ({len(names)} in all)" if len(names) > limit else "")


def read_text(path: Path, *, what: str) -> str:
    """The text of a file, with or without a byte order mark.

    Raises:
        ValueError: if it is not there or is not UTF-8; `what` says what it should be.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path}: no such {what} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text (byte {error.start}); save the {what} as UTF-8") from error
