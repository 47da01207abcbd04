"""A pair of processes that talk over a socket: JSON, bytes, and shared memory handed over."""

import json
import os
import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = struct.Struct(">BIQ")  # number of files, length of the JSON, length of the rest
MOST_FILES = 200
"""Files that one frame carries; the system hands over at most 253 at a time."""


class Channel:
    """One end of a Unix socket; one side asks, the other answers."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def send(
        self, about: Mapping[str, Any], parts: Sequence[bytes] = (), files: Sequence[int] = ()
    ) -> None:
        """Sends one frame.

        Args:
            about: what JSON can say.
            parts: and what it cannot.
            files: descriptors of memory, at most `MOST_FILES`; the other side gets its own.

        Raises:
            EOFError: the other side is gone.
        """
        text = json.dumps({**about, "parts": [len(part) for part in parts]}).encode()
        head = _HEAD.pack(len(files), len(text), sum(map(len, parts)))
        try:
            if socket.send_fds(self._end, [head], files) < len(head):
                raise EOFError("A socket took half a frame's head.")
            for piece in (text, *parts):
                self._end.sendall(piece)
        except OSError as error:
            raise EOFError("The other process is gone.") from error

    def receive(self) -> tuple[dict[str, Any], list[bytes], list[int]]:
        """Waits for a frame; the files are the receiver's to close.

        Raises:
            EOFError: the other side is gone, perhaps in the middle of it.
        """
        try:
            head, files, _, _ = socket.recv_fds(self._end, _HEAD.size, MOST_FILES)
            head += self._read(_HEAD.size - len(head))
            for file in files:
                os.set_inheritable(file, False)
            count, length, rest = _HEAD.unpack(head)
            about, data = json.loads(self._read(length)), memoryview(self._read(rest))
        except OSError as error:
            raise EOFError("The other process is gone.") from error
        assert count == len(files)
        parts, start = [], 0
        for size in about.pop("parts"):
            parts.append(bytes(data[start : start + size]))
            start += size
        return about, parts, files

    def close(self) -> None:
        """Hangs up."""
        self._end.close()

    def _read(self, size: int) -> bytes:
        data = bytearray(size)
        view, come = memoryview(data), 0
        while come < size:
            more = self._end.recv_into(view[come:])
            if not more:
                raise EOFError("The other process is gone.")
            come += more
        return bytes(data)
