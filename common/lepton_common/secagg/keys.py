"""Key agreement, key derivation, sealed shares and signatures of SA1."""

import functools

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from lepton_common.errors import BadSignature, LowOrderPoint, ShareDecryptError
from lepton_common.identity.keys import SigningKey, verify
from lepton_common.secagg.encoding import idx, lp, tagged_hash

_NONCE = bytes(12)  # each key seals one message only


def public_of(secret: bytes) -> bytes:
    """Returns the X25519 public key (RFC 7748), 32 bytes, of a 32-byte secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def agree(secret: bytes, public: bytes, who: int) -> bytes:
    """Returns the X25519 shared secret, 32 bytes, with site ``who``.

    Raises:
        LowOrderPoint: the public key forces the secret to zero.
    """
    try:
        private = X25519PrivateKey.from_private_bytes(secret)
        return private.exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError:
        raise LowOrderPoint(f"Site {who} sent a public key of low order; evict it.") from None


def check_order(public: bytes, who: int) -> None:
    """Checks that a public key of site ``who`` is not of low order, which would stop all others.

    Raises:
        LowOrderPoint: it is.
    """
    agree(bytes(31) + b"\x40", public, who)


def derive(secret: bytes, t1: bytes, tag: str, *context: bytes) -> bytes:
    """Returns a 32-byte key for one use, by HKDF-SHA256 (RFC 5869) salted with T1."""
    info = lp(f"SA1/{tag}".encode(), *context)
    return HKDF(hashes.SHA256(), length=32, salt=t1, info=info).derive(secret)


def self_mask_key(seed: bytes, t1: bytes, index: int) -> bytes:
    """Returns the key of a site's own mask, from its seed b."""
    return derive(seed, t1, "self-mask", idx(index))


def pair_mask_key(secret: bytes, public: bytes, t1: bytes, mine: int, other: int) -> bytes:
    """Returns the key of the mask that two sites share; the same from either side.

    Raises:
        LowOrderPoint: see `agree`.
    """
    low, high = sorted((mine, other))
    return derive(agree(secret, public, other), t1, "pair-mask", idx(low), idx(high))


def pair_sign(mine: int, other: int) -> int:
    """Returns how a site applies the mask it shares with another: the lower index adds."""
    return 1 if mine < other else -1


def commitment(h0: bytes, index: int, seed: bytes) -> bytes:
    """Returns B, which commits a site to the seed b of its own mask."""
    return tagged_hash("commit-b", h0, idx(index), seed)


def seal_share(key: bytes, h0: bytes, t1: bytes, sender: int, to: int, shares: bytes) -> bytes:
    """Returns shares under AES-256-GCM, bound to round, sender and receiver."""
    return AESGCM(key).encrypt(_NONCE, shares, _bound_to(h0, t1, sender, to))


def open_share(key: bytes, h0: bytes, t1: bytes, sender: int, to: int, box: bytes) -> bytes:
    """Returns the shares that `seal_share` sealed.

    Raises:
        ShareDecryptError: the box is not the sender's for this round and receiver.
    """
    try:
        return AESGCM(key).decrypt(_NONCE, box, _bound_to(h0, t1, sender, to))
    except InvalidTag:
        raise ShareDecryptError(f"The share from site {sender} does not open.") from None


def sign(key: SigningKey, tag: str, h0: bytes, body: bytes) -> bytes:
    """Returns a 64-byte Ed25519 signature over ``body`` in the round of ``h0``."""
    return key.sign(signed_bytes(tag, h0, body))


def signed_bytes(tag: str, h0: bytes, body: bytes) -> bytes:
    """Returns the bytes under a signature."""
    return lp(f"SA1/sig/{tag}".encode(), h0, body)


def check_signature(
    public: bytes, signature: bytes, tag: str, h0: bytes, body: bytes, who: int
) -> None:
    """Checks a signature of site ``who``.

    Raises:
        BadSignature: it is not the site's.
    """
    if not verified(public, signature, signed_bytes(tag, h0, body)):
        raise BadSignature(f"The '{tag}' message of site {who} is not signed by its owner.")


@functools.lru_cache(maxsize=1024)  # in a simulation all sites check the same signatures
def verified(public: bytes, signature: bytes, message: bytes) -> bool:
    """Tells whether the owner of an Ed25519 key signed the message."""
    return verify(public.hex(), signature, message)


def _bound_to(h0: bytes, t1: bytes, sender: int, to: int) -> bytes:
    return lp(b"SA1/share", h0, t1, idx(sender), idx(to))
