"""Secret randomness: an AES-256-CTR keystream under a fresh key from the operating system.

There is no seed to set. Whoever knows the seed of a noise generator can subtract the noise, and
a seed in a configuration crosses the wire; so secret samples and noise come only from here.
"""

import math
import os

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from lepton_common.privacy.rounded_pair import rounded_pair

_SPARE_BITS = np.uint64(12)  # of a word, beyond the 52 of a fraction
_ONE = np.uint64(1023 << 52)  # the exponent of numbers from 1 to 2
_ANGLE_BITS, _ANGLE = np.uint64(24), np.uint64((1 << 24) - 1)  # of a word for two float32 draws
_PAIRS = 1 << 16  # drawn at a time, which a cache holds
_GRID_BITS = 10
_WIDEST, _NARROWEST, _FARTHEST = 2.0**800, 2.0**-800, 2.0**41
# How far draws are from what their words stand for, at most, in deviations: 2**-35 by the logarithm
# and cosine of PyTorch, which are right to the last place (SLEEF, MKL), where a radius is of no
# word at the ends. Half of this is for them, which is four times that; half for the sum's rounding.
_ERROR = 2.0**-32
_LOW_END, _HIGH_END = np.uint64(1 << 44), np.uint64((1 << 64) - (1 << 44))


class SecretRandom:
    """Draws from a cryptographic keystream (NIST SP 800-38A, CTR mode)."""

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16)))
        self._keystream = cipher.encryptor()

    def words(self, count: int) -> NDArray[np.uint64]:
        """Returns ``count`` uniform 64-bit words."""
        return np.frombuffer(self._keystream.update(bytes(8 * count)), dtype=np.uint64)

    def uniform(self, count: int) -> NDArray[np.float64]:
        """Returns ``count`` uniform values strictly inside (0, 1): odd multiples of 2**-53."""
        return _fractions(self.words(count))

    def gaussian(self, count: int) -> NDArray[np.float32]:
        """Returns ``count`` independent draws of N(0, 1), as float32 has them.

        By Box and Muller (1958), each pair from one word: 40 bits of its radius, so that none is
        beyond 7.6, and 24 of its angle. For sites that are simulated: beside a secret sum, their
        last bits tell of it (Mironov 2012). What leaves a site has the noise of `add_gaussian`.
        """
        out = np.empty(count + count % 2, np.float32)
        for start in range(0, count, 2 * _PAIRS):
            # NumPy's functions of float32 take half as long as PyTorch's.
            drawn = out[start : start + 2 * _PAIRS]
            radii, angles = drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]
            words = self.words(len(radii))
            radii[:] = (words >> _ANGLE_BITS).view(np.int64)
            angles[:] = (words & _ANGLE).view(np.int64)
            radii += 0.5
            radii *= 2.0**-40
            np.log(radii, out=radii)
            radii *= -2.0
            np.sqrt(radii, out=radii)
            angles *= 2.0 * math.pi * 2.0**-24
            cosines = np.cos(angles)
            np.sin(angles, out=angles)
            angles *= radii
            radii *= cosines
        return out[:count]

    def add_gaussian(
        self, values: NDArray[np.float64], standard_deviation: float
    ) -> NDArray[np.float64]:
        """Returns values, each plus a draw of N(0, standard_deviation²), rounded; not their sums.

        Exactly so: real numbers, added without an error and rounded to the nearest whole multiple
        of a power of two, 2**-10 to 2**-11 of the deviation, are what is released. So no bit of
        it tells more than the Gaussian mechanism does, and no tail is cut. float64 decides nearly
        all of them; where it cannot tell the nearer multiple, more bits of the draw decide (as Ziv
        1991 rounds functions; draws are made of as many bits as that takes, as in Karney 2016).

        Args:
            values: float64, shape [d], within 2**41 deviations, as sums over fewer people are.
            standard_deviation: from 2**-800 to 2**800, exactly as the float says.

        Raises:
            ValueError: values or deviation are out of bounds, or not finite.
        """
        farthest = max(map(abs, (values.min(), values.max()))) if len(values) else 0.0
        if not (
            _NARROWEST <= standard_deviation <= _WIDEST
            and farthest <= _FARTHEST * standard_deviation
        ):
            raise ValueError(
                "Expected a deviation of 2**-800 to 2**800, and values within 2**41 deviations."
            )
        grid = 2.0 ** (math.frexp(standard_deviation)[1] - 1 - _GRID_BITS)
        scale, out = standard_deviation / grid, np.empty(len(values))
        for start in range(0, len(values), 2 * _PAIRS):
            part, whole = values[start : start + 2 * _PAIRS], out[start : start + 2 * _PAIRS]
            words = self.words(len(part) + len(part) % 2)
            steps = torch.from_numpy(_box_muller(words, scale)[: len(part)])
            steps.add_(torch.from_numpy(part), alpha=1.0 / grid)
            torch.round(steps, out=torch.from_numpy(whole))
            apart = steps.sub_(torch.from_numpy(whole)).numpy()
            for pair in _undecided(words, apart, 0.5 - _ERROR * scale):
                places = [place for place in (pair, pair + len(words) // 2) if place < len(part)]
                drawn = (int(words[pair]), int(words[pair + len(words) // 2]))
                whole[places] = rounded_pair(
                    drawn, part[places].tolist(), standard_deviation, grid, self.words
                )
            whole += 0.0  # of a zero, the sign would be the float64 sum's
            whole *= grid
        return out

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Returns the indices kept when each of ``population`` is kept with probability ``rate``.

        Each inclusion is independent and decided by 52 bits, so the sample may be empty; a rate
        of 1 keeps all.
        """
        return np.flatnonzero(self.uniform(population) < rate)


def _fractions(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Returns the middles of the intervals that words' upper 52 bits stand for, in (0, 1)."""
    bits = words >> _SPARE_BITS
    # As the fractions of numbers from 1 to 2 (IEEE 754) they need no conversion.
    bits |= _ONE
    values = bits.view(np.float64)
    values -= 1.0 - 2.0**-53
    return values


def _box_muller(words: NDArray[np.uint64], scale: float) -> NDArray[np.float64]:
    """Returns as many draws of N(0, scale²) as there are words, an even number.

    By Box and Muller (1958). The first half of the words is of radii, the second of angles; of
    the draws, of cosines and sines.
    """
    drawn = torch.from_numpy(_fractions(words))
    radii, angles = drawn[: len(words) // 2], drawn[len(words) // 2 :]
    radii.log_().mul_(-2.0 * scale**2).sqrt_()
    angles.mul_(2.0 * math.pi)
    cosines = torch.cos(angles)
    angles.sin_().mul_(radii)
    radii.mul_(cosines)
    out: NDArray[np.float64] = drawn.numpy()
    return out


def _undecided(
    words: NDArray[np.uint64], apart: NDArray[np.float64], certain: float
) -> NDArray[np.int64]:
    """Returns the pairs that float64 cannot round: nearly always none.

    Args:
        words: of radii, then of angles.
        apart: how far sums are from the whole numbers next to them, of cosines, then of sines.
        certain: how far they may be, below 0.5.
    """
    radii, count = words[: len(words) // 2], len(apart)
    # Where an addition was rounded across a middle, it was to the middle itself.
    near = count and max(-float(apart.min()), float(apart.max())) > certain
    if not near and count and radii.min() >= _LOW_END and radii.max() < _HIGH_END:
        return np.empty(0, np.int64)
    pairs = (radii < _LOW_END) | (radii >= _HIGH_END)
    middle = np.abs(np.resize(apart, len(words))) > certain  # a lone radius has two looks
    return np.flatnonzero(pairs | middle[: len(pairs)] | middle[len(pairs) :])
