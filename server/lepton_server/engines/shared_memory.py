"""Memory without a name that processes share: the system frees it with whoever holds it last."""

import mmap
import os
import tempfile
from collections.abc import Mapping, Sequence

from lepton_common.flower.lifting import Lifted

Place = tuple[str, int, int]
"""An array's name in its record, where its bytes begin, and their number."""


def new_memory(size: int) -> int:
    """Returns the file descriptor of fresh shared memory.

    It has no name that could be left behind, whoever is killed when, and does not count against
    ``/dev/shm``, which containers keep small.
    """
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("lepton")
    else:
        with tempfile.TemporaryFile() as unnamed:
            file = os.dup(unnamed.fileno())
    os.ftruncate(file, size)
    return file


class Segment:
    """The large arrays of one record, written once for all who are sent it.

    Attributes:
        number: its own.
        file: file descriptor of its memory.
        places: where each array lies.
    """

    def __init__(self, number: int, arrays: Sequence[Lifted]) -> None:
        """Copies the arrays into shared memory, held until as many `release` as `hold`."""
        self.number = number
        self.places: list[Place] = []
        size = 0
        for name, data in arrays:
            self.places.append((name, size, len(data)))
            size += len(data)
        self.file = new_memory(size)
        with mmap.mmap(self.file, size) as memory:
            for (_, start, length), (_, data) in zip(self.places, arrays, strict=True):
                memory[start : start + length] = data
        self._users = 0

    def hold(self) -> None:
        """Counts one more message that carries it."""
        self._users += 1

    def release(self) -> bool:
        """Counts one less; gives up the memory after the last, and tells whether it did."""
        self._users -= 1
        if self._users == 0:
            os.close(self.file)
        return self._users == 0


class Outbox:
    """Memory that one process writes its newest arrays to, for one other to read."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def write(self, lifted: Mapping[str, Sequence[Lifted]]) -> tuple[dict[str, list[Place]], int]:
        """Writes arrays over those of before.

        Returns:
            Where they lie, by their record's name; and the file descriptor of new memory that the
            reader must be given first, which is the caller's to close, or -1.
        """
        size = sum(len(data) for arrays in lifted.values() for _, data in arrays)
        file = -1
        if size > (len(self._memory) if self._memory else 0):
            file = new_memory(size)
            self._memory = mmap.mmap(file, size)
        places: dict[str, list[Place]] = {}
        start = 0
        for key, arrays in lifted.items():
            places[key] = []
            for name, data in arrays:
                assert self._memory is not None
                self._memory[start : start + len(data)] = data
                places[key].append((name, start, len(data)))
                start += len(data)
        return places, file


class Inbox:
    """The other end of an `Outbox`."""

    def __init__(self) -> None:
        self._memory: mmap.mmap | None = None

    def take(self, file: int) -> None:
        """Takes over new memory by its file descriptor, which is closed."""
        self._memory = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
        os.close(file)

    def read(self, places: Sequence[Place]) -> list[Lifted]:
        """Returns copies of arrays, since the next ones will lie in the same memory."""
        assert self._memory is not None
        return [(name, self._memory[start : start + size]) for name, start, size in places]
