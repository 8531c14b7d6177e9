"""What the verbs share: parsing typed options, and the logging of a command line."""

import logging
import sys
from typing import TypeVar

from rcnn.terminal import printable

Options = TypeVar("Options")


class PrintableFormatter(logging.Formatter):
    """Lines of the log in which nothing from a file can steer the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        return printable(super().format(record))


def parse(
    options: type[Options], argv: list[str], *, verb: str, description: str, default: Options | None = None
) -> Options:
    """The verb's options from the command line; `--help` and misspelt flags end the program with a message."""
    import tyro

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(PrintableFormatter("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    given = tyro.cli(options, args=argv, prog=f"rcnn {verb}", description=description, default=default)
    assert isinstance(given, options)
    return given
