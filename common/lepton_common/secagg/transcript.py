"""Transcript hashes: what a site has seen of a round, in 32 bytes a stage."""

from collections.abc import Iterable

from lepton_common.secagg.encoding import idx, tagged_hash


def hash_adverts(h0: bytes, adverts: Iterable[bytes]) -> bytes:
    """Returns T1 over the advertisements in order of the sites (SA1 R1)."""
    return tagged_hash("T1", h0, *adverts)


def hash_sharers(t1: bytes, sharers: Iterable[int]) -> bytes:
    """Returns T2 over the sites whose shares are out (SA1 R2)."""
    return tagged_hash("T2", t1, *map(idx, sorted(sharers)))


def hash_headers(t2: bytes, headers: Iterable[bytes]) -> bytes:
    """Returns T3 over the headers of the masked vectors in order of the sites (SA1 R3)."""
    return tagged_hash("T3", t2, *headers)
