"""Exact integer noise: draws whose distribution is the stated one, not one rounded to floats.

Noise that is added before secure aggregation is added to integers, and its privacy is proved for
an exact law. Each draw here inverts the law's cumulative distribution at a real number that is
uniform in [0, 1), of which only as many bits are drawn as the answer needs (lazily, as in Knuth
and Yao, 1976): one word of 63 nearly always, and more, in Python's integers, for the fewer than
2**-40 of draws that it leaves open. The laws are computed in integer intervals that hold the true
values, so rounding can cost time but never give a wrong draw.

How long a draw takes depends on its value.
"""

from bisect import bisect_left
from collections.abc import Callable
from functools import lru_cache
from math import ceil, isqrt

import numpy as np
from numpy.typing import NDArray

from lepton_common.privacy.noise import SecretRandom

_LEAST, _MOST = 2.0**-4, 2.0**14  # standard deviations
_WORD_BITS = 63  # of a keystream word that choose the size of a draw; its lowest is the sign
_GUIDE_BITS = 16  # of those, the ones that choose it alone wherever they can
_GUARD_BITS = 128  # beyond the bits of a cell, for rounding
_CHUNK = 1 << 15  # draws at a time, so that they stay in the cache

# The ratios P(k+1)/P(k) for k = 0, 1, ..., at least ``count`` of them and falling, of the law with
# this parameter, as integer bounds (low, high) in units of 2**-precision.
_Ratios = Callable[[float, int, int], list[tuple[int, int]]]


def skellam(random: SecretRandom, variance: float, count: int) -> NDArray[np.int64]:
    """Returns independent draws of P(k) = exp(-variance) I_|k|(variance).

    This is the difference of two Poisson variables of mean variance/2 each (Skellam, 1946), so n
    sites that each add it have added it with n times the variance (Agarwal, Kairouz and Liu, 2021).

    Args:
        random: the only source of randomness.
        variance: of each draw, exactly as the float says; in [2**-8, 2**28].
        count: how many draws.

    Returns:
        Draws, int64 of shape (count,).

    Raises:
        ValueError: the variance is out of bounds or the count negative.
    """
    if not _LEAST**2 <= variance <= _MOST**2:
        raise _out_of_bounds("variance", variance)
    return _table(_skellam_ratios, float(variance), float(variance), _WORD_BITS).draw(random, count)


def discrete_gaussian(random: SecretRandom, scale: float, count: int) -> NDArray[np.int64]:
    """Returns independent draws of P(k) proportional to exp(-k²/(2 scale²)).

    Their standard deviation is slightly below ``scale`` (Canonne, Kamath and Steinke, 2020). A
    sum of them is close to this law but not of it.

    Args:
        random: the only source of randomness.
        scale: exactly as the float says; in [2**-4, 2**14].
        count: how many draws.

    Returns:
        Draws, int64 of shape (count,).

    Raises:
        ValueError: the scale is out of bounds or the count negative.
    """
    if not _LEAST <= scale <= _MOST:
        raise _out_of_bounds("scale", scale)
    return _table(_gaussian_ratios, float(scale), float(scale) ** 2, _WORD_BITS).draw(random, count)


def _out_of_bounds(name: str, value: float) -> ValueError:
    return ValueError(
        f"Expected a {name} whose standard deviation is 2**-4 to 2**14 steps of the grid, not "
        f"{value}. Above that a coarser grid loses nothing; below it, take a finer one."
    )


class _Table:
    """One symmetric law, ready to be drawn from with words of ``bits`` bits (63 but in tests)."""

    def __init__(self, ratios: _Ratios, parameter: float, variance: float, bits: int) -> None:
        self._law = (ratios, parameter, variance)
        self._bits = bits
        self._finer: dict[int, list[int]] = {}
        self._cells = np.array(_cells(*self._law, bits), dtype=np.uint64)
        self._guide_bits = min(bits, _GUIDE_BITS)
        # The size of a draw by its first bits, or -1 where some boundary lies among their numbers.
        heads = self._cells >> np.uint64(bits - self._guide_bits)
        self._guide = np.searchsorted(heads, np.arange(1 << self._guide_bits, dtype=np.uint64))
        self._guide[heads] = -1

    def draw(self, random: SecretRandom, count: int) -> NDArray[np.int64]:
        """Returns ``count`` draws: one word for each, and further ones for those left open."""
        draws = np.empty(count, dtype=np.int64)
        for start in range(0, count, _CHUNK):
            sizes = draws[start : start + _CHUNK]
            words = random.words(len(sizes))
            heads = (words >> np.uint64(64 - self._guide_bits)).view(np.int64)
            self._guide.take(heads, out=sizes, mode="clip")  # "raise" would buffer
            mixed = np.flatnonzero(sizes < 0)
            if len(mixed):
                sizes[mixed] = self._search(random, words[mixed] >> np.uint64(64 - self._bits))
            minus = (words & np.uint64(1)).view(np.int64)
            sizes ^= -minus  # two's complement: x, or -x - 1 and then + 1
            sizes += minus
        return draws

    def _search(self, random: SecretRandom, words: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Returns the size that each word chooses, drawing more where a boundary is inside it."""
        sizes = np.searchsorted(self._cells, words)
        for i in np.flatnonzero(self._cells[sizes] == words):
            sizes[i] = self._refine(random, int(words[i]))
        return sizes

    def _refine(self, random: SecretRandom, drawn: int) -> int:
        """Returns the size of a draw that its first bits left open, doubling them until it is."""
        bits = self._bits
        while True:
            for word in random.words(bits // self._bits):
                drawn = drawn << self._bits | int(word) >> (64 - self._bits)
            bits *= 2
            if bits not in self._finer:
                self._finer[bits] = _cells(*self._law, bits)
            size = bisect_left(self._finer[bits], drawn)
            if self._finer[bits][size] != drawn:
                return size


@lru_cache(maxsize=8)
def _table(ratios: _Ratios, parameter: float, variance: float, bits: int) -> _Table:
    return _Table(ratios, parameter, variance, bits)


def _cells(ratios: _Ratios, parameter: float, variance: float, bits: int) -> list[int]:
    """Returns floor(2**bits P(|X| <= m)) for m = 0, 1, ... up to the first that is 2**bits - 1.

    The uniform numbers that begin with the bits of w then have the size m if w lies strictly
    between entries m - 1 and m; those of an entry itself are open, the whole tail among them.
    """
    precision = bits + _GUARD_BITS
    while True:
        # By Bernstein's inequality the rest is below 2**-precision. Were it not, or were rounding
        # to leave an entry in doubt, the bounds would disagree and the precision be doubled.
        count = isqrt(ceil(2 * precision * variance)) + precision
        low = high = sum_low = sum_high = 1 << precision  # the weight of 0 is 1
        sums = [(sum_low, sum_high)]
        for ratio_low, ratio_high in (steps := ratios(parameter, precision, count)):
            low = low * ratio_low >> precision
            high = -(-high * ratio_high >> precision)
            sum_low += 2 * low
            sum_high += 2 * high
            sums.append((sum_low, sum_high))
        last = steps[-1][1]  # ratios fall, so the rest is below a geometric series
        total_high = sum_high + 2 * -(-high * last // ((1 << precision) - last))
        cells = []
        for below, above in sums:
            cell = (below << bits) // total_high
            if cell != (above << bits) // sum_low:
                break
            cells.append(cell)
            if cell == (1 << bits) - 1:
                return cells
        precision *= 2


def _skellam_ratios(variance: float, precision: int, count: int) -> list[tuple[int, int]]:
    """Returns bounds of r_k = I_{k+1}(v)/I_k(v): Miller's recurrence I_{k-1} = I_{k+1} + 2k/v I_k.

    As r_{k-1} = v/(2k + v r_k), from the highest k down. The law is a convolution of log-concave
    ones, so r_k falls, and by the recurrence the highest is in (v/(2k + 2 + v), v/(k + v)).
    """
    v, unit = variance.as_integer_ratio()
    one = 1 << precision
    low = v * one // ((2 * count + 2) * unit + v)
    high = -(-v * one // (count * unit + v))
    steps = [(low, high)]
    for k in range(count, 0, -1):
        whole = 2 * k * unit << precision
        top = v << 2 * precision
        low, high = top // (whole + v * high), -(-top // (whole + v * low))
        steps.append((low, high))
    return steps[::-1]


def _gaussian_ratios(scale: float, precision: int, count: int) -> list[tuple[int, int]]:
    """Returns bounds of q**(2k + 1), where q = exp(-1/(2 scale²))."""
    numerator, denominator = scale.as_integer_ratio()
    # exp(-x/256) by its alternating series, as x/256 <= 1/2. Each term is rounded down by less
    # than 2 units in all, and what follows the last, which is 0, is below 2.
    term = total = 1 << precision
    terms = 0
    while term:
        terms += 1
        term = term * denominator**2 // (512 * numerator**2 * terms)
        total += -term if terms % 2 else term
    low, high = total - 2 * terms - 2, total + 2 * terms + 2
    for _ in range(8):
        low, high = low * low >> precision, -(-high * high >> precision)
    square_low, square_high = low * low >> precision, -(-high * high >> precision)
    steps = [(low, high)]
    for _ in range(count):
        low, high = low * square_low >> precision, -(-high * square_high >> precision)
        steps.append((low, high))
    return steps
