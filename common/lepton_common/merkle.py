"""Merkle trees as in Certificate Transparency (RFC 6962, 2.1): one hash for a list of entries."""

import hashlib
from collections.abc import Sequence


def leaf_hash(entry: bytes) -> bytes:
    """Returns the hash of an entry, 32 bytes; never that of an inner node."""
    return hashlib.sha256(b"\x00" + entry).digest()


def root_of_leaves(leaves: Sequence[bytes]) -> bytes:
    """Returns the root over leaf hashes in order, 32 bytes."""
    if not leaves:
        return hashlib.sha256().digest()
    level = list(leaves)
    while len(level) > 1:
        # Pairing from the left gives RFC 6962's tree: its left parts are whole powers of two.
        paired = [_node(left, right) for left, right in zip(level[::2], level[1::2], strict=False)]
        level = paired + level[2 * len(paired) :]
    return level[0]


def merkle_root(entries: Sequence[bytes]) -> str:
    """Returns the hexadecimal root over entries in order."""
    return root_of_leaves([leaf_hash(entry) for entry in entries]).hex()


def _node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(b"\x01" + left + right).digest()
