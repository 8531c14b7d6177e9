"""`rcnn download`: data sets and ImageNet weights, resumable and checked, to where the recipes look for them."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from rcnn.commands.options import parse
from rcnn.commands.progress import INTERVAL

DESCRIPTION = """Download data sets and ImageNet weights (rcnn download --list shows them), check and unpack them.
What is there already is not fetched again; an interrupted download goes on where it stopped. Proxies are those of
the environment (https_proxy). Archives go to DATA_DIR/downloads: one put there by hand is checked and used."""


@dataclass(frozen=True)
class Options:
    """What can be given on the command line."""

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME...")] = ()
    """what to download"""
    list: bool = False
    """show what there is: name, size, how it is checked, what it is and its terms"""
    data_dir: str = "data"
    """directory for data sets; the recipes look in data"""
    weights_dir: str = "weights"
    """directory for weights"""
    keep_archives: bool = False
    """keep archives that were unpacked"""


def main(argv: list[str]) -> int:
    """Run the verb."""
    options = parse(Options, argv, verb="download", description=DESCRIPTION)
    from rcnn.download.catalogue import ITEMS, find_item, table
    from rcnn.download.install import Places, install, refuse_full_disk

    if options.list:
        print(table())
        return 0
    if not options.names:
        raise ValueError(f"which? rcnn download NAME...; known: {', '.join(item.name for item in ITEMS)}")
    items = [find_item(name) for name in dict.fromkeys(options.names)]
    places = Places(Path(options.data_dir), Path(options.weights_dir), options.keep_archives)
    refuse_full_disk(items, places)
    try:
        with Bars() if sys.stderr.isatty() else Lines() as display:
            for item in items:
                path = install(item, places, display)
                display.note(f"{item.name}: in {path}")
    except KeyboardInterrupt:
        print("stopped; what was fetched is kept, and the same command goes on from there", file=sys.stderr)
        raise
    return 0


class Bars:
    """A bar for each step, with rate and time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.progress import TransferSpeedColumn as Speed

        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._tasks = {}

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def count(self, what: str, done: int, total: int | None) -> None:
        """Move the bar."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done)
        self._progress.update(self._tasks[what], completed=done, total=total)

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Lines:
    """A plain line now and then, and at the end of each step."""

    def __init__(self) -> None:
        self._what, self._first, self._begun, self._said = "", 0, 0.0, 0.0

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def count(self, what: str, done: int, total: int | None) -> None:
        """A line, if it is time for one."""
        now = time.perf_counter()
        if what != self._what:
            self._what, self._first, self._begun, self._said = what, done, now, now
        if done == total or now - self._said >= INTERVAL:
            self._said = now
            self.note(_line(what, done, total, (done - self._first) / max(now - self._begun, 1e-9)))

    def note(self, text: str) -> None:
        """A line."""
        print(text, file=sys.stderr, flush=True)


def _line(what: str, done: int, total: int | None, rate: float) -> str:
    from rcnn.download.catalogue import in_words

    if total is None or not rate:
        return f"{what} {in_words(done)}"
    left = f"  {(total - done) / rate:.0f} s left" if done < total else ""
    return f"{what} {in_words(done)} of {in_words(total)}  {in_words(round(rate))}/s{left}"
