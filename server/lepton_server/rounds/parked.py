"""A large model, or the sum of its updates, in a file of which only what is used is in memory.

While sites train and their updates come, nobody reads the model, and the sum only as one is added;
and it is then that the coordinator holds most.
"""

import mmap
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector

LARGE = 1 << 26  # bytes; below, files cost more than they save


def park(vector: Vector, folder: Path) -> Vector:
    """Returns the same values, float32, shape [d], from a file without a name if they are many.

    Whoever writes to them changes a copy in memory, not the file. Where the disk is full they
    stay where they are.

    Args:
        vector: float32, shape [d]; contiguous.
        folder: where the file is.
    """
    if vector.nbytes < LARGE:
        return vector
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(vector.data.cast("B"))
            file.flush()
            mapped = mmap.mmap(
                file.fileno(), vector.nbytes, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE
            )
    except OSError:
        return vector
    parked: Vector = np.frombuffer(mapped, dtype=np.float32)
    return parked


def zeros(count: int, folder: Path | None) -> NDArray[np.int64]:
    """Returns zeros to be added to, shape [count], from a file without a name if they are many.

    The file's room is taken at once: on a disk that fills up later, writing to memory would end
    the process. Where there is none they are in memory.

    Args:
        count: how many.
        folder: where the file is; None: in memory.
    """
    size, take = 8 * count, getattr(os, "posix_fallocate", None)
    if folder is None or take is None or size < 2 * LARGE:
        return np.zeros(count, np.int64)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            take(file.fileno(), 0, size)
            return np.frombuffer(mmap.mmap(file.fileno(), size), np.int64)
    except OSError:
        return np.zeros(count, np.int64)


def rest(vector: NDArray[Any]) -> None:
    """Lets go of the memory of a vector in a file until it is read; of others keeps it.

    Nobody may have written to a parked model; what was written to a sum is in its file.
    """
    base: object = vector.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)
