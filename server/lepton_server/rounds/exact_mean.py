"""A weighted mean of updates that does not depend on the order in which they arrive."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lepton_common.arrays import Vector
from lepton_common.errors import UpdateInvalid
from lepton_server.rounds.gathered import Mean, Means
from lepton_server.rounds.parked import rest, zeros

_SCALE = 2.0**40
_BOUND = 2.0**20
_CHUNK, _RESTING = 1 << 15, 1 << 23  # numbers
# Between 2**52 and 2**53 float64 numbers are whole. So whoever adds this to a number of at most
# 2**51 has rounded it to the nearest whole one (ties to even), which then stands in the last bits.
_ROUNDER = 1.5 * 2.0**52
_ROUNDER_BITS = int(np.float64(_ROUNDER).view(np.int64))


class ExactMean:
    """Sums updates in 64-bit fixed point: integer addition has no rounding, so no order.

    Each update is weighted by its share of the whole cohort's weight and rounded to multiples
    of 2**-40. Elements are bounded by 2**20 and shares add up to at most 1, so no sum exceeds
    2**60.
    """

    def __init__(
        self, size: int, weights: dict[str, int], keep_each: bool, folder: Path | None = None
    ) -> None:
        """Begins a mean.

        Args:
            size: length of each update.
            weights: public weight of each site of the cohort, > 0.
            keep_each: whether to keep the single updates too, for robust strategies.
            folder: where a large sum may lie in a file; None: in memory.
        """
        self._sum = zeros(size, folder)
        self._piece = np.empty(min(size, _CHUNK))
        self._weights, self._total = weights, sum(weights.values())
        self._came: list[str] = []
        self._each: dict[str, Vector] | None = {} if keep_each else None

    @property
    def size(self) -> int:
        """Length of each update."""
        return len(self._sum)

    @property
    def count(self) -> int:
        """Number of updates added."""
        return len(self._came)

    def add(self, site: str, update: Vector) -> None:
        """Adds a site's update, float32, shape [size].

        Raises:
            UpdateInvalid: an element is not finite or beyond 2**20; nothing was added.
        """
        # NaN fails both comparisons; min and max propagate it.
        low, high = update.min(initial=0.0), update.max(initial=0.0)
        if not (low >= -_BOUND and high <= _BOUND):
            raise UpdateInvalid("An update holds values that are not finite, or beyond 2**20.")
        factor = _SCALE * self._weights[site] / self._total
        small = max(-low, high) * factor < 2.0**51
        for start in self._chunks():
            values, part = update[start : start + _CHUNK], self._sum[start : start + _CHUNK]
            piece = np.multiply(values, factor, out=self._piece[: len(values)], dtype=np.float64)
            if small:
                piece += _ROUNDER
                part += piece.view(np.int64)  # wraps around, which `value` takes back
            else:
                part += np.rint(piece, out=piece).astype(np.int64)
                part += _ROUNDER_BITS
        self._came.append(site)
        if self._each is not None:
            self._each[site] = update

    def value(self) -> Vector:
        """Returns the mean over the sites that came, float32, shape [size]."""
        came = sum(self._weights[site] for site in self._came)
        factor, mean = self._total / came / _SCALE, np.empty(self.size, np.float32)
        # Of each update's bits those of the rounder, once each, modulo 2**64.
        extra = np.uint64(self.count * _ROUNDER_BITS % 2**64).astype(np.int64)
        for start in self._chunks():
            mean[start : start + _CHUNK] = (self._sum[start : start + _CHUNK] - extra) * factor
        return mean

    def _chunks(self) -> Iterator[int]:
        """Yields where pieces of the sum begin, and has what is done with rest."""
        for start in range(0, self.size, _CHUNK):
            yield start
            if start % _RESTING == 0:
                rest(self._sum)
        rest(self._sum)

    def without_sum(self) -> Mean:
        """Returns the same in a third of the memory, where nobody needs the single updates."""
        if self._each is not None or not self._came:
            return self
        return Means([self.value()], self.count)

    def each(self) -> list[Vector]:
        """Returns the single updates in order of the sites' names."""
        return [update for _, update in sorted((self._each or {}).items())]
