"""Secret randomness: an AES-256-CTR keystream under a fresh key from the operating system.

There is no seed to set. Whoever knows the seed of a noise generator can subtract the noise, and
a seed in a configuration crosses the wire; so secret samples and noise come only from here.
"""

import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

_CHUNK = 1 << 16


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
        return ((self.words(count) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52

    def gaussian(self, count: int, standard_deviation: float) -> NDArray[np.float64]:
        """Returns ``count`` independent draws of N(0, standard_deviation²) (Box and Muller, 1958).

        float64 throughout; the tail is cut at 8.57 standard deviations by the 52-bit uniforms,
        beyond which lies less than 1e-16 of the distribution.
        """
        out = np.empty(count + count % 2)
        half = len(out) // 2
        for start in range(0, half, _CHUNK):
            stop = min(start + _CHUNK, half)
            uniform = self.uniform(2 * (stop - start))
            radius = np.sqrt(-2.0 * np.log(uniform[: stop - start]))
            angle = 2.0 * np.pi * uniform[stop - start :]
            out[start:stop] = radius * np.cos(angle)
            out[half + start : half + stop] = radius * np.sin(angle)
        out *= standard_deviation
        return out[:count]

    def poisson_sample(self, population: int, rate: float) -> NDArray[np.int64]:
        """Returns the indices kept when each of ``population`` is kept with probability ``rate``.

        Each inclusion is independent and decided by 52 bits, so the sample may be empty; a rate
        of 1 keeps all.
        """
        return np.flatnonzero(self.uniform(population) < rate)
