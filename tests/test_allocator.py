import ctypes
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest

from rcnn.allocator import keep_freed_memory

SOURCE = Path(__file__).resolve().parents[1] / "src"
FAULTS = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from rcnn.allocator import keep_freed_memory
if sys.argv[2] == "keep":
    keep_freed_memory()
for i in range(12):
    if i == 2:
        begin = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    buffer = bytearray(64 * 2**20)
    buffer[::4096] = b"x" * len(buffer[::4096])
    del buffer
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begin)
"""


HUGE = """
import sys
sys.path.insert(0, sys.argv[1])
from rcnn.allocator import keep_freed_memory
keep_freed_memory()
buffer = bytearray(512 * 2**20)
buffer[::4096] = b"x" * len(buffer[::4096])
print(sum(int(line.split()[1]) for line in open("/proc/self/smaps") if line.startswith("AnonHugePages")))
"""
ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


class Library:
    """A C library that notes what it is told, with an allocator that has nothing left."""

    def __init__(self, *, with_mallopt: bool = True) -> None:
        self.calls: list[tuple[int, int]] = []
        self.malloc, self.free, self.madvise = Mock(return_value=None), Mock(), Mock()
        if with_mallopt:
            self.mallopt = lambda option, value: self.calls.append((option, value))


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MALLOC_ variable is set; what a test sets is gone after it."""
    monkeypatch.setenv("THP_MEM_ALLOC_ENABLE", "")
    monkeypatch.delenv("THP_MEM_ALLOC_ENABLE")
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)


def page_faults(mode: str, **environment: str) -> int:
    command = [sys.executable, "-c", FAULTS, str(SOURCE), mode]
    return int(subprocess.check_output(command, env=os.environ | environment, text=True))


@pytest.mark.skipif(not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc's")
def test_definition_big_buffers_are_used_again_without_page_faults() -> None:
    pages = 10 * 64 * 2**20 // os.sysconf("SC_PAGE_SIZE")
    assert page_faults("keep") < pages / 50


@pytest.mark.skipif(not ENABLED.is_file() or "[never]" in ENABLED.read_text(), reason="no huge pages on this system")
def test_big_buffers_lie_in_huge_pages_where_there_are_any() -> None:
    found = subprocess.check_output([sys.executable, "-c", HUGE, str(SOURCE)], env=dict(os.environ), text=True)
    assert int(found) >= 500 * 2**10  # KiB


def test_a_heap_that_cannot_grow_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    keep_freed_memory()
    library.malloc.assert_called_once()
    library.madvise.assert_not_called()
    library.free.assert_not_called()


def test_each_setting_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    keep_freed_memory()
    assert sorted(option for option, _ in library.calls) == [-4, -2, -1]
    assert all(0 <= value < 2**31 for _, value in library.calls)  # they are C ints
    assert os.environ["THP_MEM_ALLOC_ENABLE"] == "1"


@pytest.mark.parametrize("case", ["macOS", "musl", "the user's own settings"])
def test_elsewhere_it_does_nothing(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(with_mallopt=case != "musl")
    monkeypatch.setattr(sys, "platform", "darwin" if case == "macOS" else "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: library)
    if case == "the user's own settings":
        monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    keep_freed_memory()
    assert library.calls == [] and "THP_MEM_ALLOC_ENABLE" not in os.environ
