"""Fewer or rounder coordinates in a masked sum: shared random positions, blockwise rotation.

Both are drawn from the round's hash, so that all sites agree on them and no data decides them.
(Positions chosen by the data, as in top-k, would tell which weights a site's records move.)
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.masks import add_masks

BLOCK = 4096


def draw_positions(round_hash: bytes, size: int, count: int) -> NDArray[np.int64]:
    """Returns ``count`` distinct positions out of ``size``, ascending, uniformly drawn."""
    if count == size:
        return np.arange(size)
    words = _words(round_hash, "coords", size)
    limit = np.partition(words, count - 1)[count - 1]
    below = np.flatnonzero(words < limit)
    ties = np.flatnonzero(words == limit)[: count - len(below)]
    return np.sort(np.concatenate([below, ties]))


def rotated_size(size: int) -> int:
    """Returns the length of a rotated vector: whole blocks, of a power of two."""
    block = _block(size)
    return -(-size // block) * block


class Rotation:
    """Random signs and a Hadamard matrix on each block (Ailon and Chazelle 2006).

    It is orthogonal and spreads each block's energy evenly, so that a low clip and few bits
    lose little: after it, single large coordinates are as unlikely as in Gaussian noise.
    """

    def __init__(self, round_hash: bytes, size: int) -> None:
        """Draws the rotation of vectors of ``size`` values from the round's hash."""
        self._size, self._padded = size, rotated_size(size)
        odd = _words(round_hash, "signs", self._padded) & 1
        self._signs = 1 - 2 * odd.astype(np.float32)

    def forward(self, values: Vector) -> Vector:
        """Returns the rotated values, float32, shape [rotated_size(d)]."""
        padded = np.zeros(self._padded, np.float32)
        padded[: self._size] = values
        return self._mix(padded * self._signs)

    def inverse(self, rotated: Vector) -> Vector:
        """Returns what `forward` rotated, float32, shape [d]."""
        return (self._mix(rotated) * self._signs)[: self._size]

    def _mix(self, values: Vector) -> Vector:
        block = _block(self._size)
        # The matrix of a block is a Kronecker product, so two small matrices do its work.
        rows = 1 << (block.bit_length() - 1) // 2
        squares = values.reshape(-1, rows, block // rows)
        return np.ravel(_hadamard(rows) @ squares @ _hadamard(block // rows))


def _block(size: int) -> int:
    return min(BLOCK, 1 << (size - 1).bit_length())


@lru_cache(maxsize=8)
def _hadamard(size: int) -> NDArray[np.float32]:
    from scipy.linalg import hadamard

    matrix: NDArray[np.float32] = (hadamard(size) / np.sqrt(size)).astype(np.float32)
    return matrix


def _words(round_hash: bytes, tag: str, count: int) -> NDArray[np.uint32]:
    words = np.zeros(count, "<u4")
    add_masks(words, [(tagged_hash(tag, round_hash), 1)], 32)
    return words
