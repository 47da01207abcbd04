"""Large pages for large buffers, where the system has them: fewer page faults, faster writing."""

import ctypes
import functools
import mmap
from collections.abc import Callable

_LEAST = 4 << 20  # bytes; below, pages hardly count


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
def _madvise() -> Callable[[int, int, int], int] | None:
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    return function
