"""Keyed hashes of the people in a site's data, by which the ledger knows them again.

The key is the site's own, so the hashes mean nothing to anyone else and cannot be tried out.
"""

import hashlib

from lepton_common.datasets.records import Records
from lepton_common.identity.keys import SigningKey

_BYTES = 16


def people_secret(key: SigningKey) -> bytes:
    """Returns the key of a site's hashes, 32 bytes."""
    return key.derive(b"lepton/ledger/people/v1")


def unit_hashes(records: Records, unit: str, secret: bytes) -> frozenset[bytes]:
    """Returns one hash, keyed with ``secret``, for each privacy unit.

    A unit that the schema names (a patient, a customer) is known by its id, so ids must stay
    the same between versions of the data; a row is known by its content, before it was prepared
    in the one way or the other.
    """

    def keyed(content: bytes) -> bytes:
        return hashlib.blake2b(
            content, digest_size=_BYTES, key=secret, person=unit.encode()[:16]
        ).digest()

    if records.units is not None:
        return frozenset(keyed(int(unit_id).to_bytes(8, signed=True)) for unit_id in records.units)
    if records.marks is not None:
        return frozenset(keyed(mark.tobytes()) for mark in records.marks)
    features, labels = records.features.numpy(), records.labels.numpy()
    return frozenset(
        keyed(features[row].tobytes() + labels[row].tobytes()) for row in range(len(records))
    )
