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

_EXPONENTS = {1: np.uint64(1023 << 52), 2: np.uint64(1024 << 52)}


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
        values = self._read_from(1, count)
        values -= 1.0
        values += 2.0**-53
        return values

    def gaussian(self, count: int, standard_deviation: float) -> NDArray[np.float64]:
        """Returns ``count`` independent draws of N(0, standard_deviation²), by inversion.

        float64 throughout; the tail is cut at 8.2 standard deviations by the 52-bit uniforms,
        beyond which lies less than 1e-15 of the distribution.
        """
        # PyTorch's error function runs on several values at once; NumPy and SciPy have none such.
        drawn = torch.from_numpy(self._read_from(2, count))
        drawn.sub_(3.0).add_(2.0**-52)  # 2u - 1 of uniform u, which no step rounds
        drawn.erfinv_().mul_(math.sqrt(2.0) * standard_deviation)
        out: NDArray[np.float64] = drawn.numpy()
        return out

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Returns the indices kept when each of ``population`` is kept with probability ``rate``.

        Each inclusion is independent and decided by 52 bits, so the sample may be empty; a rate
        of 1 keeps all.
        """
        return np.flatnonzero(self.uniform(population) < rate)

    def _read_from(self, power: int, count: int) -> NDArray[np.float64]:
        """Returns uniform words read as numbers from ``power``, 1 or 2, to twice that: 52 bits."""
        bits = self.words(count) >> np.uint64(12)
        # As the fractions of such numbers (IEEE 754) they need no conversion.
        bits |= _EXPONENTS[power]
        return bits.view(np.float64)
