"""The sealed files of a site's rounds: secrets that outlive a process, and end with the round.

AES-256-GCM under a key derived from the site's own; 0600; on disk before anything leaves that
depends on it. They never travel: Flower's ``Context`` holds nothing of them.
"""

import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from lepton_client.participant import Participant
from lepton_common.durable import sync_folder, write_atomic
from lepton_common.errors import MalformedMessage, PolicyViolation, StateError
from lepton_common.identity.keys import SigningKey

_NONCE_BYTES = 12


class Vault:
    """A folder with one sealed file for each run's current round."""

    def __init__(self, folder: Path, key: SigningKey) -> None:
        self._folder, self._key = folder, key
        self._cipher = AESGCM(key.derive(b"lepton/vault/v1"))

    def save(self, part: Participant) -> None:
        """Replaces the state of the run's round; it is on disk when this returns."""
        self._folder.mkdir(mode=0o700, exist_ok=True)
        path = self._folder / f"{part.spec.run_id.hex()}.{part.spec.hash.hex()}"
        nonce = os.urandom(_NONCE_BYTES)
        sealed = self._cipher.encrypt(nonce, part.to_bytes(), path.name.encode())
        write_atomic(path, nonce + sealed, mode=0o600)

    def load(self, spec_hash: bytes) -> Participant:
        """Returns the state of the round that a message names.

        Raises:
            StateError: there is no such round, or its file was altered.
        """
        path = next(self._folder.glob(f"*.{spec_hash.hex()}"), None)
        if path is None:
            raise StateError("This site is not in the round that the message names.")
        data = path.read_bytes()
        try:
            opened = self._cipher.decrypt(
                data[:_NONCE_BYTES], data[_NONCE_BYTES:], path.name.encode()
            )
            return Participant.from_bytes(opened, self._key)
        except (InvalidTag, MalformedMessage, PolicyViolation, ValueError):
            raise StateError("The sealed state does not open; the round is over here.") from None

    def erase_run(self, run_id: bytes) -> None:
        """Forgets all rounds of a run, with what a crash left of their files."""
        name = run_id.hex()
        for path in [*self._folder.glob(f"{name}.*"), *self._folder.glob(f".{name}.*")]:
            # Overwritten first: where the file system writes in place, nothing stays behind.
            with path.open("r+b") as file:
                file.write(bytes(path.stat().st_size))
                file.flush()
                os.fsync(file.fileno())
            path.unlink()
            sync_folder(self._folder)
