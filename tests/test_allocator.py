import ctypes
import os
import subprocess
import sys
from pathlib import Path

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


class Library:
    """A C library that notes what it is told."""

    def __init__(self, *, with_mallopt: bool = True) -> None:
        self.calls: list[tuple[int, int]] = []
        if with_mallopt:
            self.mallopt = lambda option, value: self.calls.append((option, value))


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No MALLOC_ variable is set; what is set by a test is gone after it."""
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


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").is_file(), reason="no huge pages here")
def test_pytorch_asks_for_huge_pages() -> None:
    program = """
import re, sys
sys.path.insert(0, sys.argv[1])
import torch
from rcnn.allocator import keep_freed_memory
keep_freed_memory()
x = torch.empty(64 * 2**20, dtype=torch.uint8)
maps = open("/proc/self/smaps").read().split("VmFlags:")
for part, flags in zip(maps, (rest.partition("\\n")[0] for rest in maps[1:])):
    for begin, end in re.findall("^([0-9a-f]+)-([0-9a-f]+) ", part, re.M):
        if int(begin, 16) <= x.data_ptr() + 2**23 < int(end, 16):
            print("hg" in flags.split())
"""
    told = subprocess.run([sys.executable, "-c", program, str(SOURCE)], capture_output=True, text=True, check=True)
    assert told.stdout == "True\n"
