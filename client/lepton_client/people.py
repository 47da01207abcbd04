"""The people in a site's data: keyed hashes by which the ledger knows them, and who is held back.

The key is the site's own, so the hashes mean nothing to anyone else and cannot be tried out. Who
is held back for evaluation follows from the person alone, by a public rule.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.records import Records
from lepton_common.identity.keys import SigningKey

_BYTES = 16
_DRAW = b"lepton/held-back/v1"


def people_secret(key: SigningKey) -> bytes:
    """Returns the key of a site's hashes, 32 bytes."""
    return key.derive(b"lepton/ledger/people/v1")


def unit_hashes(records: Records, unit: str, secret: bytes) -> frozenset[bytes]:
    """Returns one hash, keyed with ``secret``, for each privacy unit.

    A unit that the schema names (a patient, a customer) is known by its id, so ids must stay
    the same between versions of the data; a row is known by its content, before it was prepared
    in the one way or the other.
    """
    return frozenset(_keyed(content, unit, secret) for content in _identities(records))


def held_back(records: Records, unit: str, share: float) -> NDArray[np.bool_]:
    """Returns which records are kept for evaluation and never trained on, bool, shape [n].

    About that share of the people, with all of their records. The rule knows nothing but the
    person, so they are the same ones in every round, after new records came, and at each site
    that has them; equal rows are one person's.

    Args:
        records: the site's.
        unit: what is protected as one.
        share: of the people, in [0, 1).
    """
    if share == 0:
        return np.zeros(len(records), np.bool_)
    below = round(share * 2**64)
    drawn = (_keyed(content, unit, _DRAW)[:8] for content in _identities(records))
    return np.fromiter((int.from_bytes(draw) < below for draw in drawn), np.bool_, len(records))


def _keyed(content: bytes, unit: str, secret: bytes) -> bytes:
    return hashlib.blake2b(
        content, digest_size=_BYTES, key=secret, person=unit.encode()[:16]
    ).digest()


def _identities(records: Records) -> Iterator[bytes]:
    """Yields by what the person of each record is known."""
    if records.units is not None:
        return (int(unit_id).to_bytes(8, signed=True) for unit_id in records.units)
    if records.marks is not None:
        return (mark.tobytes() for mark in records.marks)
    features, labels = records.features.numpy(), records.labels.numpy()
    return (features[row].tobytes() + labels[row].tobytes() for row in range(len(records)))
