"""Settings of the C library's allocator for work that allocates the same big buffers again and again."""

import ctypes
import os
import sys
from typing import Any

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4  # glibc's malloc.h
MADV_HUGEPAGE = 14  # Linux's mman.h
HUGE_PAGE = 2**21  # bytes
FIRST_HEAP = 2**31 - 2**26  # bytes of address space, less than what glibc would give back when they are freed


def keep_freed_memory() -> None:
    """Tell glibc to keep freed buffers instead of returning their pages to the system after every operation.

    Page faults cost a CPU 10 to 26 % of a forward pass. Pages of 4 KB cost another 7 %, where Linux gives larger ones
    to who asks for them: the first 2 GB of the heap do, and PyTorch for each large tensor, if it hears so before its
    first. Does nothing on other C libraries, or where the user has set any MALLOC_ variable. Its price is that memory
    once used stays with the process.
    """
    if not sys.platform.startswith("linux") or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    mallopt = getattr(library, "mallopt", None)
    if mallopt is None:
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    _ask_for_huge_pages(library)
    mallopt(M_TOP_PAD, 256 * 2**20)  # only now: with it the first heap would be more than is kept
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _ask_for_huge_pages(library: Any) -> None:
    """Let the heap grow, untouched, to its first size, and ask for huge pages there; refused, nothing changes."""
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.restype, library.free.argtypes = None, [ctypes.c_void_p]
    library.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    begin = library.malloc(FIRST_HEAP)
    if begin:
        first = -(-begin // HUGE_PAGE) * HUGE_PAGE
        library.madvise(first, (begin + FIRST_HEAP - first) // HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE)
        library.free(begin)
