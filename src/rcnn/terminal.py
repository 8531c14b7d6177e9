"""What a terminal may be shown of a text that files have a part in."""

import re

OTHER = re.compile(r"[^\x20-\x7e\n\t]")  # all else is looked at one by one
LONGEST = 2000  # characters of a line that are shown


def printable(text: str) -> str:
    """The text with escape sequences, reversals and the like as Python writes them, and endless lines cut short.

    Names of classes and files come from data sets: they must not move the cursor, set the title or hide what follows.
    """
    safe = OTHER.sub(_escaped, text)
    return "\n".join(_cut(line) for line in safe.split("\n"))


def _escaped(found: re.Match[str]) -> str:
    return found[0] if found[0].isprintable() else found[0].encode("unicode_escape").decode()


def _cut(line: str) -> str:
    if len(line) <= LONGEST:
        return line
    half = LONGEST // 2
    return f"{line[:half]} ... ({len(line)} characters) ... {line[-half:]}"
