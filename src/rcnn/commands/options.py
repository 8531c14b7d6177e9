"""What the verbs share: parsing typed options, and the logging of a command line."""

import logging
import sys
from typing import TypeVar

Options = TypeVar("Options")


def parse(
    options: type[Options], argv: list[str], *, verb: str, description: str, default: Options | None = None
) -> Options:
    """The verb's options from the command line; `--help` and misspelt flags end the program with a message."""
    import tyro

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    given = tyro.cli(options, args=argv, prog=f"rcnn {verb}", description=description, default=default)
    assert isinstance(given, options)
    return given
