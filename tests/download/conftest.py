"""Every test here may have a server, and waits for nothing."""

from collections.abc import Iterator

import pytest

from rcnn.download import exchange, fetch
from tests.download.server import Site, Watcher, running_site


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site() as running:
        yield running


@pytest.fixture
def watcher() -> Watcher:
    return Watcher()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pauses, short stalls, no proxy between us and ourselves."""
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(exchange, "STALL", 1.0)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
