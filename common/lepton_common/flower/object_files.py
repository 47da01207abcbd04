"""Objects of the SuperLink's that lie in files, as whoever asks for one is answered."""

import secrets
import threading
from pathlib import Path

from flwr.proto.message_pb2 import PullObjectResponse
from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

SMALL = 1 << 16
_FOUND = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
_CONTENT = b"\x1a"  # of the answer's third field: a length, and so many bytes


class FileObjectStore(InMemoryObjectStore):
    """Flower's store in memory, but that large objects lie in files, each as the answer to a pull.

    Attributes:
        mark: what `get` returns of a large object begins with it, and goes on with its id. Nobody
            outside can know it.
    """

    def __init__(self, folder: Path) -> None:
        """Begins empty.

        Args:
            folder: of nobody else; what an earlier store left there is removed.
        """
        super().__init__()
        self._folder, self.mark = folder, secrets.token_bytes(16)
        self._coming: dict[bytes, bytes] = {}
        # Whose files there are; `delete` is called with whatever a node says an id is.
        self._in_files: set[str] = set()
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()

    def announce(self, content: bytes) -> bytes:
        """Returns what `put` takes in place of a content; to be withdrawn when it has, or not."""
        stands_for = self.mark + secrets.token_bytes(16)
        self._coming[stands_for] = content
        return stands_for

    def withdraw(self, stands_for: bytes) -> None:
        """Forgets a content that was announced; b"" stands for none."""
        self._coming.pop(stands_for, None)

    def put(self, object_id: str, object_content: bytes) -> None:
        """Takes an object in, once its content is found to be what its id says."""
        object_content = self._coming.get(object_content, object_content)
        super().put(object_id, object_content)
        if len(object_content) < SMALL:
            return
        written = self._folder / f"{object_id}.{threading.get_ident()}"
        try:
            with written.open("wb") as file:
                file.write(_FOUND + _CONTENT + _varint(len(object_content)))
                file.write(object_content)
            with self.lock_store:
                entry = self.store.get(object_id)
                if entry is not None:
                    written.replace(self._folder / object_id)
                    self._in_files.add(object_id)
                    entry.content = self.mark + object_id.encode()
        finally:
            written.unlink(missing_ok=True)

    def delete(self, object_id: str) -> None:
        """Deletes an object, and what nothing else refers to below it."""
        with self.lock_store:
            super().delete(object_id)
            if object_id in self._in_files and object_id not in self.store:
                self._in_files.discard(object_id)
                (self._folder / object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes all."""
        with self.lock_store:
            super().clear()
            self._in_files.clear()
            for path in self._folder.iterdir():
                path.unlink()


def _varint(number: int) -> bytes:
    """Returns a number as protobuf writes it: seven bits a byte, the low ones first."""
    made = bytearray()
    while number >= 0x80:
        made.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*made, number])
