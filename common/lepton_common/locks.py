"""Locks of the kernel's (flock), of which neither kill -9 nor a power cut leaves one behind."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def only_one(path: Path, taken: Exception) -> Iterator[int]:
    """Holds the lock of a file, which is made if need be; yields its descriptor.

    Args:
        path: of the file.
        taken: raised where another process holds it.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise taken from None
        yield file
    finally:
        os.close(file)
