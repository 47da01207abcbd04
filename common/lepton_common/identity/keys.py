"""Ed25519 signing keys (RFC 8032) with which a site signs what it says and does.

A key is in a file, or in a token (`tokens.TokenKey`); nobody but `SigningKey.load` need know.
"""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lepton_common.durable import write_atomic
from lepton_common.errors import KeyUnreadable

_ROUNDS = 64  # of bcrypt's key derivation: half a second


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
    def from_seed(cls, seed: bytes) -> "SigningKey":
        """Returns the key that a secret of 32 bytes stands for (RFC 8032, 5.1.5)."""
        return cls(Ed25519PrivateKey.from_private_bytes(seed))

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> "SigningKey":
        """Opens a key written by `save`, in the file or in the token that it names.

        Args:
            path: the file.
            passphrase: of a sealed key, or the token's PIN.

        Raises:
            KeyUnreadable: there is no such file or token, it holds no Ed25519 key, or is sealed
                under another passphrase.
        """
        data = _read(path)
        if _is_reference(data):
            from lepton_common.identity.tokens import TokenKey, read_reference

            return TokenKey(read_reference(data, path), passphrase)
        try:
            ssh = data.startswith(b"-----BEGIN OPENSSH")
            load = serialization.load_ssh_private_key if ssh else serialization.load_pem_private_key
            key: object = load(data, passphrase.encode() if passphrase is not None else None)
        except TypeError:
            how = "is not sealed; give no" if passphrase else "is sealed; give its"
            raise KeyUnreadable(f"The key {path} {how} passphrase.") from None
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyUnreadable(
                f"{path} holds no Ed25519 key, or is sealed under another passphrase."
            )
        return cls(key)

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Writes the key, readable by its owner only.

        As PKCS#8 PEM, or with a passphrase sealed under it in OpenSSH's form (bcrypt, AES-256),
        whose passphrase ``ssh-keygen -p`` changes.
        """
        write_atomic(path, self.to_pem(passphrase), mode=0o600)

    def to_pem(self, passphrase: str | None = None) -> bytes:
        """Returns what `save` writes; secret."""
        form = serialization.PrivateFormat.PKCS8
        how: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            # cryptography's PKCS#8 has 2,048 iterations of PBKDF2, too few against guessing.
            form = serialization.PrivateFormat.OpenSSH
            how = form.encryption_builder().kdf_rounds(_ROUNDS).build(passphrase.encode())
        return self._private.private_bytes(serialization.Encoding.PEM, form, how)

    def derive(self, purpose: bytes) -> bytes:
        """Returns a 32-byte secret for one purpose (HKDF-SHA256, RFC 5869)."""
        return HKDF(hashes.SHA256(), length=32, salt=None, info=purpose).derive(
            self._private.private_bytes_raw()
        )

    def sign_certificate(self, builder: x509.CertificateBuilder) -> x509.Certificate:
        """Returns a certificate signed with the key."""
        return builder.sign(self._private, None)

    def sign(self, message: bytes) -> bytes:
        """Returns the 64-byte signature over ``message``."""
        return self._private.sign(message)


class PublicKey(SigningKey):
    """A key of which only the public half is here: it opens what it signed, and signs nothing."""

    def __init__(self, public_hex: str) -> None:
        self.public_hex = public_hex

    def sign(self, message: bytes) -> bytes:
        """Refuses.

        Raises:
            KeyUnreadable: always.
        """
        raise KeyUnreadable("The private key is not opened here, so nothing can be signed.")


def read_public(path: Path) -> str:
    """Returns the hexadecimal public key of a key; asks no token for it.

    Raises:
        KeyUnreadable: the file cannot be read, or is sealed.
    """
    data = _read(path)
    if _is_reference(data):
        from lepton_common.identity.tokens import read_reference

        return read_reference(data, path).public_key
    return SigningKey.load(path).public_hex


def verify(public_hex: str, signature: bytes, message: bytes) -> bool:
    """Tells whether ``signature`` over ``message`` was made by the key's owner."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyUnreadable(f"Cannot read the key {path}: {error.strerror}.") from None


def _is_reference(data: bytes) -> bool:
    return data.startswith(b"{")
