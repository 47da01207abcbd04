"""Shamir's secret sharing (1979) of 32-byte secrets over the prime field of 2**256 + 297."""

from collections.abc import Callable, Mapping
from functools import lru_cache

_PRIME = 2**256 + 297
_BYTES = 33


def share(
    secret: bytes, threshold: int, parties: int, random_bytes: Callable[[int], bytes]
) -> list[bytes]:
    """Returns the 33-byte shares at x = 1..parties; any ``threshold`` of them give the secret."""
    drawn = [int.from_bytes(random_bytes(48)) % _PRIME for _ in range(threshold - 1)]
    coefficients = [*drawn, int.from_bytes(secret)]
    return [_at(coefficients, x).to_bytes(_BYTES) for x in range(1, parties + 1)]


def reconstruct(shares: Mapping[int, bytes]) -> bytes:
    """Returns the 32-byte secret whose shares at these x are given.

    Raises:
        ValueError: a share is no field element, or the secret is longer than 32 bytes.
    """
    values = [int.from_bytes(value) for value in shares.values()]
    if any(len(value) != _BYTES for value in shares.values()) or max(values) >= _PRIME:
        raise ValueError("A share is not a field element of 33 bytes.")
    weights = _lagrange(tuple(shares))
    secret = sum(w * v for w, v in zip(weights, values, strict=True)) % _PRIME
    if secret >= 2**256:
        raise ValueError("The shares do not belong together.")
    return secret.to_bytes(32)


def _at(coefficients: list[int], x: int) -> int:
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % _PRIME
    return value


@lru_cache(maxsize=64)  # many secrets are rebuilt from one set of sites
def _lagrange(points: tuple[int, ...]) -> tuple[int, ...]:
    weights = []
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above = above * other % _PRIME
                below = below * (other - x) % _PRIME
        weights.append(above * pow(below, -1, _PRIME) % _PRIME)
    return tuple(weights)
