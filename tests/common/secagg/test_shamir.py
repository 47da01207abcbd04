"""Tests of secret sharing: known answers, every set of shares, and what too few of them say."""

import contextlib
import hashlib
import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_common.secagg import shamir

_PRIME = 2**256 + 297


def _kat_bytes():
    calls = itertools.count(1)
    return lambda size: hashlib.shake_256(b"SA1-KAT" + next(calls).to_bytes(8)).digest(size)


def test_known_answer(vectors):
    known = json.loads((vectors / "sa1.json").read_text())["shamir"]
    secret = bytes.fromhex(known["secret"])
    shares = shamir.share(secret, known["threshold"], known["parties"], _kat_bytes())
    assert hashlib.sha256(b"".join(shares)).hexdigest() == known["sha256"]


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(range(32))])
@pytest.mark.parametrize(("threshold", "parties"), [(1, 2), (2, 2), (2, 3), (3, 5), (5, 6)])
def test_every_set_of_enough_shares_gives_the_secret(secret, threshold, parties):
    shares = dict(enumerate(shamir.share(secret, threshold, parties, _kat_bytes()), start=1))
    assert all(len(share) == 33 for share in shares.values())
    for size in range(threshold, parties + 1):
        for chosen in itertools.permutations(shares, size):
            assert shamir.reconstruct({x: shares[x] for x in chosen}) == secret


@given(st.binary(min_size=32, max_size=32), st.integers(1, 12), st.integers(0, 12))
def test_round_trip(secret, threshold, more):
    shares = shamir.share(secret, threshold, threshold + more, _kat_bytes())
    chosen = dict(list(enumerate(shares, start=1))[more:])
    assert shamir.reconstruct(chosen) == secret


def test_too_few_shares_fit_every_secret():
    secret = bytes(range(32))
    shares = dict(enumerate(shamir.share(secret, 3, 5, _kat_bytes()), start=1))
    for chosen in itertools.combinations(shares, 2):
        (x1, y1), (x2, y2) = ((x, int.from_bytes(shares[x])) for x in chosen)
        for candidate in (0, 1, 2**256 - 1, int.from_bytes(secret)):
            # The one polynomial c + a x + b x^2 through the candidate and both shares.
            d1 = (y1 - candidate) * pow(x1, -1, _PRIME)
            d2 = (y2 - candidate) * pow(x2, -1, _PRIME)
            b = (d2 - d1) * pow(x2 - x1, -1, _PRIME) % _PRIME
            a = (d1 - b * x1) % _PRIME
            third = next(x for x in shares if x not in chosen)
            value = (candidate + a * third + b * third**2) % _PRIME
            held = {x: shares[x] for x in chosen} | {third: value.to_bytes(33)}
            assert shamir.reconstruct(held) == candidate.to_bytes(32)


def test_too_few_shares_rebuild_something_else():
    secret = bytes(range(32))
    shares = dict(enumerate(shamir.share(secret, 4, 6, _kat_bytes()), start=1))
    for size in (1, 2, 3):
        for chosen in itertools.combinations(shares, size):
            # What is rebuilt may also be longer than 32 bytes, which is refused.
            with contextlib.suppress(ValueError):
                assert shamir.reconstruct({x: shares[x] for x in chosen}) != secret


@pytest.mark.parametrize(
    "shares",
    [
        {},
        {1: bytes(32)},
        {1: bytes(34)},
        {0: bytes(33)},
        {-1: bytes(33)},
        {1: _PRIME.to_bytes(33)},
        {1: b"\xff" * 33},
        {1: bytes(33), 2: _PRIME.to_bytes(33)},
        {1: (2**256).to_bytes(33)},
        {1: (_PRIME - 1).to_bytes(33)},
    ],
)
def test_refuses_what_is_no_share(shares):
    with pytest.raises(ValueError, match=r"share"):
        shamir.reconstruct(shares)


@pytest.mark.parametrize(
    ("secret", "threshold", "parties"),
    [(bytes(31), 2, 3), (bytes(33), 2, 3), (bytes(32), 0, 3), (bytes(32), 4, 3)],
)
def test_refuses_to_share(secret, threshold, parties):
    with pytest.raises(ValueError, match="32 bytes and a threshold"):
        shamir.share(secret, threshold, parties, bytes)
