"""Ed25519 signing keys (RFC 8032) with which a site signs what it says and does."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lepton_common.durable import write_atomic


class SigningKey:
    """A private Ed25519 key; made at the site, never sent anywhere."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public_hex = private.public_key().public_bytes_raw().hex()

    @classmethod
    def generate(cls) -> "SigningKey":
        """Makes a fresh key from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> "SigningKey":
        """Reads a key written by `save`.

        Raises:
            ValueError: the file holds no Ed25519 key.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except TypeError:  # an encrypted key
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path.name} holds no plain Ed25519 key; create the site again.")
        return cls(key)

    def save(self, path: Path) -> None:
        """Writes the key as PKCS#8 PEM, readable by its owner only."""
        pem = self._private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        write_atomic(path, pem, mode=0o600)

    def derive(self, purpose: bytes) -> bytes:
        """Returns a 32-byte secret for one purpose (HKDF-SHA256, RFC 5869)."""
        return HKDF(hashes.SHA256(), length=32, salt=None, info=purpose).derive(
            self._private.private_bytes_raw()
        )

    def sign(self, message: bytes) -> bytes:
        """Returns the 64-byte signature over ``message``."""
        return self._private.sign(message)


def verify(public_hex: str, signature: bytes, message: bytes) -> bool:
    """Tells whether ``signature`` over ``message`` was made by the key's owner."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
