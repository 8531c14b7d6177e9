"""A progress bar with rate and time left on a terminal, plain lines otherwise."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
INTERVAL = 10.0  # seconds between plain lines


def track(items: Iterable[Item], *, total: int, what: str) -> Iterator[Item]:
    """The items, with their progress shown on standard error."""
    return _bar(items, total, what) if sys.stderr.isatty() else _lines(items, total, what)


def _bar(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    rate = TextColumn("{task.speed:.1f} images/s")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total)
        progress.tasks[0].finished_speed = 0.0
        for item in items:
            yield item
            progress.advance(task)


def _lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    begun = said = time.perf_counter()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.perf_counter()
        if now - said >= INTERVAL or done == total:
            rate = done / (now - begun)
            print(f"{what} {done}/{total}  {rate:.1f} images/s  {(total - done) / rate:.0f} s left", file=sys.stderr)
            said = now
