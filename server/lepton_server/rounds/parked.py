"""A large model in a file, of which only what is being read is in memory.

While sites train and their updates come, nobody reads the model; and it is then that the
coordinator holds most.
"""

import mmap
import tempfile
from pathlib import Path

import numpy as np

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


def rest(vector: Vector) -> None:
    """Lets go of the memory of a parked vector that nobody has written to, until it is read."""
    base: object = vector.base
    mapped = base.obj if isinstance(base, memoryview) else base
    if isinstance(mapped, mmap.mmap):
        mapped.madvise(mmap.MADV_DONTNEED)
