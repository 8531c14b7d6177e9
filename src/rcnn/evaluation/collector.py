"""Python's search for unreachable cycles, paused while a million small objects are made on purpose."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No search inside the block or decorated function; afterwards as before.

    Each search walks over all objects made so far, none of which can go: a third of the time of reading and evaluating
    half a million detections.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
