"""The answer that has left through the door and is not at the coordinator yet: one at a time.

It is kept until the coordinator has all of it, or nobody waits for it any more, so that a broken
connection costs time and no answer. What was charged or masked can never be made again, and is
kept in a sealed file too, against the end of the process: AES-256-GCM under a key derived from the
site's own, piece by piece. Not synced to the disk: after a power cut the round has gone on, and a
torn file does not open.
"""

import logging
import os
import time
from pathlib import Path
from typing import IO

import httpx
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lepton_common.errors import MalformedMessage
from lepton_common.flower.fleet import FleetNode
from lepton_common.flower.parcel import Parcel
from lepton_common.identity.keys import SigningKey

OUTBOX_FILE = "outbox"
_NONCE_BYTES = 12
_LENGTH_BYTES = 8
_TIMED_OUT = 408  # nginx's, of a body that came too slowly
_LOG = logging.getLogger("lepton.agent")


class Outbox:
    """A site's outbox."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        """Opens it, with what an agent that was killed has left there.

        Args:
            folder: the site's.
            key: the site's; seals.
        """
        self._path = folder / OUTBOX_FILE
        self._cipher = AESGCM(key.derive(b"lepton/outbox/v1"))
        self._parcel = self._left()

    def put(self, parcel: Parcel, *, durable: bool) -> None:
        """Takes in an answer, for `send_on`.

        Args:
            parcel: the answer.
            durable: whether it outlives this process; where the disk is full, it does not.
        """
        self._parcel = parcel
        if not durable:
            return
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(os.open(self._path, flags, 0o600), "wb") as file:
                self._seal(file, 0, parcel.announcement)
                for number, name in enumerate(parcel.names, start=1):
                    self._seal(file, number, parcel.content(name))
        except OSError as error:
            self._path.unlink(missing_ok=True)
            _LOG.warning("An answer is kept in memory only (%s).", type(error).__name__)

    def send_on(self, node: FleetNode) -> None:
        """Sends what is there, if anything; then nothing is.

        Raises:
            httpx.HTTPError, OSError: the coordinator cannot be reached; the answer stays.
        """
        if self._parcel is None:
            return
        try:
            if time.time() < self._parcel.until:
                node.send(self._parcel)
            else:
                _LOG.warning("An answer could not be sent before its time was up.")
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if status >= 500 or status == _TIMED_OUT:
                raise
            # The run has ended, or was begun anew: nobody waits for this answer.
            _LOG.warning("The coordinator does not want an answer any more (HTTP %d).", status)
        except MalformedMessage:
            _LOG.warning("An answer that was kept does not open, and is given up.")
        self._parcel = None
        self._path.unlink(missing_ok=True)

    def _left(self) -> Parcel | None:
        try:
            with self._path.open("rb") as file:
                announcement, places = self._open(file, 0), []
                while file.peek(1):
                    places.append(file.tell())
                    file.seek(_sealed_bytes(file), os.SEEK_CUR)
            numbers: dict[str, int] = {}
            parcel = Parcel(announcement, lambda name: self._piece(places, numbers[name]))
            numbers |= {name: number for number, name in enumerate(parcel.names)}
            if len(places) != len(numbers):
                raise MalformedMessage("The file is torn.")
        except FileNotFoundError:
            return None
        except (OSError, MalformedMessage):
            _LOG.warning("An answer that was kept does not open, and is given up.")
            self._path.unlink(missing_ok=True)
            return None
        return parcel

    def _piece(self, places: list[int], number: int) -> bytes:
        with self._path.open("rb") as file:
            file.seek(places[number])
            return self._open(file, number + 1)

    def _seal(self, file: IO[bytes], number: int, data: bytes) -> None:
        nonce = os.urandom(_NONCE_BYTES)
        sealed = nonce + self._cipher.encrypt(nonce, data, _bytes(number))
        file.write(_bytes(len(sealed)))
        file.write(sealed)

    def _open(self, file: IO[bytes], number: int) -> bytes:
        sealed = file.read(_sealed_bytes(file))
        try:
            nonce, data = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
            return self._cipher.decrypt(nonce, data, _bytes(number))
        except (InvalidTag, ValueError):
            raise MalformedMessage("A piece of the kept answer does not open.") from None


def _bytes(number: int) -> bytes:
    return number.to_bytes(_LENGTH_BYTES, "big")


def _sealed_bytes(file: IO[bytes]) -> int:
    """Returns the length of the sealed piece that comes next: nothing has sealed the length."""
    length = int.from_bytes(file.read(_LENGTH_BYTES), "big")
    if length > os.fstat(file.fileno()).st_size - file.tell():
        raise MalformedMessage("The file is torn.")
    return length
