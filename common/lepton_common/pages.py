"""Fewer page faults: large pages for large buffers, and freed memory kept for the next step."""

import ctypes
import functools
import mmap
from collections.abc import Callable

_LEAST = 4 << 20  # bytes; below, pages hardly count
# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -2, -3, -4, -8


def use_huge_pages(buffer: memoryview) -> None:
    """Asks the system to back a writable buffer by large pages; does nothing where it cannot.

    This is advice about memory that the buffer has already: its contents stay as they are.
    """
    advise = _madvise()
    if advise is None or buffer.nbytes < _LEAST:
        return
    start = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    aligned = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
    advise(aligned, start + buffer.nbytes - aligned, mmap.MADV_HUGEPAGE)


@functools.cache
def keep_freed_memory() -> None:
    """Makes the process keep what it frees; does nothing where the C library is not glibc.

    Each training step allocates the same tensors again. Given back to the system in between, as
    large blocks are, every page of them would be faulted in and zeroed anew, which is a tenth to a
    fifth of a step.
    """
    _mallopt({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 1 << 26})


def give_back_freed_memory() -> None:
    """Gives all that is free back to the system; does nothing where the C library is not glibc.

    For when another model comes: what one has left behind fits none of the next one's vectors.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def keep_freed_pieces() -> None:
    """As `keep_freed_memory`, in a process that passes models on: it trains none.

    All threads allocate from one heap, which keeps the pieces that models travel in. Whole models
    are given back at once: in one heap with their pieces they would leave gaps that fit nothing.
    """
    _mallopt({_ARENA_MAX: 1, _MMAP_THRESHOLD: 1 << 25, _TRIM_THRESHOLD: 1 << 28, _TOP_PAD: 1 << 26})


def _mallopt(values: dict[int, int]) -> None:
    change = getattr(ctypes.CDLL(None), "mallopt", None)
    if change is not None:
        for parameter, value in values.items():
            change(parameter, value)


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
