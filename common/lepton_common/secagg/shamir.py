"""Shamir's secret sharing (1979) of 32-byte secrets over the prime field of 2**256 + 297."""

from collections.abc import Callable, Mapping
from functools import lru_cache

_PRIME = 2**256 + 297
_BYTES = 33  # of a field element
_DRAWN = 48  # random bytes per coefficient: reduced, they are within 2**-127 of uniform


def share(
    secret: bytes, threshold: int, parties: int, random_bytes: Callable[[int], bytes]
) -> list[bytes]:
    """Returns one share for each of ``parties``; fewer than ``threshold`` say nothing.

    Args:
        secret: 32 bytes.
        threshold: t, how many shares give the secret; in [1, parties].
        parties: n, how many shares are made.
        random_bytes: source of secret randomness; called t - 1 times, for the coefficients
            from the highest power to the lowest.

    Returns:
        Shares at x = 1..n, 33 bytes each.

    Raises:
        ValueError: the secret is not 32 bytes, or the threshold out of bounds.
    """
    if len(secret) != 32 or not 1 <= threshold <= parties:
        raise ValueError("Expected a secret of 32 bytes and a threshold of 1 to all parties.")
    drawn = [int.from_bytes(random_bytes(_DRAWN)) % _PRIME for _ in range(threshold - 1)]
    coefficients = [*drawn, int.from_bytes(secret)]
    return [_at(coefficients, x).to_bytes(_BYTES) for x in range(1, parties + 1)]


def reconstruct(shares: Mapping[int, bytes]) -> bytes:
    """Returns the 32-byte secret on the polynomial through exactly these shares.

    Args:
        shares: 33-byte shares by their x, each above 0; as many as the threshold.

    Raises:
        ValueError: there is none, one is no field element, or the result is longer than 32
            bytes, so that the shares do not belong together.
    """
    values = [int.from_bytes(value) for value in shares.values()]
    if not values or any(len(value) != _BYTES for value in shares.values()) or min(shares) < 1:
        raise ValueError("Expected shares of 33 bytes, each at its x of 1 or more.")
    if max(values) >= _PRIME:
        raise ValueError("A share is not below the prime of the field.")
    weights = _lagrange(tuple(shares))
    secret = sum(w * v for w, v in zip(weights, values, strict=True)) % _PRIME
    if secret >= 2**256:
        raise ValueError("The shares do not belong together.")
    return secret.to_bytes(32)


def _at(coefficients: list[int], x: int) -> int:
    """Returns the polynomial's value at ``x``, by Horner's rule."""
    value = 0
    for coefficient in coefficients:
        value = (value * x + coefficient) % _PRIME
    return value


@lru_cache(maxsize=64)  # one set of sites rebuilds many secrets
def _lagrange(points: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the weight of each point's value in the value at 0."""
    weights = []
    for x in points:
        above = below = 1
        for other in points:
            if other != x:
                above = above * other % _PRIME
                below = below * (other - x) % _PRIME
        weights.append(above * pow(below, -1, _PRIME) % _PRIME)
    return tuple(weights)
