"""Fixed-point codec: float32 vectors as elements of the ring of integers modulo 2**width.

The scale leaves room for the sum of all parties, so a sum never wraps around.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector
from lepton_common.errors import EncodingError, MalformedMessage
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.masks import LANE, RingVector, each_lane

WIDTHS = (16, 20, 24, 32)
_CHUNK = 1 << 15  # elements; keeps temporaries in the second-level cache
_MOST_SCALE_BITS = 60


@dataclass(frozen=True)
class Ring:
    """The codec of one round.

    Attributes:
        width: bits of an element.
        parties: most vectors in a sum.
        dimension: d, number of values.
        clip: bound on each value.
        weight_bits: fraction bits of a weight, which rides in limbs behind the values.
    """

    width: int
    parties: int
    dimension: int
    clip: float
    weight_bits: int

    def __post_init__(self) -> None:
        """Refuses what cannot be summed without overflow or loss of everything.

        Raises:
            ValueError: saying which bound does not hold.
        """
        if self.width not in WIDTHS:
            raise ValueError(f"the width should be one of {WIDTHS}.")
        if not (0 < self.clip < 1e30) or np.float32(self.clip) == 0:
            raise ValueError("the clip should be a positive float32.")
        if self.parties < 2 or self.limb_width < 1:
            raise ValueError("the parties should be 2 or more, and fit the width.")
        if not 0 <= self.scale_bits <= _MOST_SCALE_BITS:
            raise ValueError("the clip is too large or too small for the width and the parties.")

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Type of a ring element in memory and, little-endian, on the wire."""
        return np.dtype("<u2") if self.width == 16 else np.dtype("<u4")

    @property
    def limb_width(self) -> int:
        """Bits of a weight that one element carries without overflow in the sum."""
        return self.width - 1 - math.ceil(math.log2(max(2, self.parties)))

    @property
    def limbs(self) -> int:
        """Number of elements that carry the weight."""
        return -(-(self.weight_bits + 1) // self.limb_width)

    @property
    def length(self) -> int:
        """D = d + limbs, number of elements."""
        return self.dimension + self.limbs

    @property
    def packed_bytes(self) -> int:
        """Length of a packed vector."""
        if self.width == 20:
            return 2 * self.length + (self.length + 1) // 2
        return self.length * self.width // 8

    @cached_property
    def scale_bits(self) -> int:
        """s: a value x is the integer x * 2**s; n values of at most ``clip`` do not overflow."""
        largest, clip = (2 ** (self.width - 1) - 1) // self.parties, float(np.float32(self.clip))
        scale = math.frexp(largest / clip)[1]
        while math.ldexp(clip, scale) > largest:
            scale -= 1
        return scale

    def encode(self, values: Vector, weight: float = 1.0) -> RingVector:
        """Returns weighted values, clipped to ±``clip``, and the weight, shape [D].

        Args:
            values: float32, shape [d].
            weight: in (0, 1]; rounded to ``weight_bits``, at least one unit, and applied so.

        Raises:
            EncodingError: a value is not finite, or the weight out of bounds.
        """
        if not 0 < weight <= 1:
            raise EncodingError("A weight should be above 0 and at most 1.")
        units = max(1, round(weight * 2**self.weight_bits))
        factor = np.float32(2.0**self.scale_bits * units / 2**self.weight_bits)
        out: RingVector = np.empty(self.length, self.dtype)
        each_lane(
            self.dimension,
            lambda _, part: self._encode_lane(values[part], factor, out[: self.dimension][part]),
        )
        for limb in range(self.limbs):
            piece = units >> (limb * self.limb_width)
            out[self.dimension + limb] = piece & (2**self.limb_width - 1)
        return out

    def decode(self, total: RingVector) -> tuple[NDArray[np.float64], float]:
        """Returns the sum of weighted values, float64, shape [d], and the sum of weights."""
        weight = sum(
            (int(total[self.dimension + limb]) & self._mask) << (limb * self.limb_width)
            for limb in range(self.limbs)
        )
        values = np.empty(self.dimension, np.float64)
        half = 1 << (self.width - 1)
        for start in range(0, self.dimension, _CHUNK):
            piece = total[: self.dimension][start : start + _CHUNK].astype(np.int64) & self._mask
            piece -= (piece >= half).astype(np.int64) << self.width
            np.multiply(piece, 2.0**-self.scale_bits, out=values[start : start + _CHUNK])
        return values, weight / 2**self.weight_bits

    def pack(self, vector: RingVector) -> bytes:
        """Returns the elements as bytes: planes of 16 bits and of the rest."""
        if self.width in (16, 32):
            return vector.astype(self.dtype, copy=False).tobytes()
        low = vector.astype("<u2").tobytes()
        high = (vector >> np.uint32(16)).astype(np.uint8)
        if self.width == 24:
            return low + high.tobytes()
        high &= np.uint8(15)
        if len(high) % 2:
            high = np.append(high, np.uint8(0))
        return low + (high[::2] | high[1::2] << np.uint8(4)).tobytes()

    def unpack(self, data: bytes) -> RingVector:
        """Returns the elements that `pack` packed; may share the memory of ``data``.

        Raises:
            MalformedMessage: not exactly such bytes.
        """
        if len(data) != self.packed_bytes:
            raise MalformedMessage(
                f"A masked vector should have {self.packed_bytes} bytes, not {len(data)}."
            )
        if self.width in (16, 32):
            return np.frombuffer(data, self.dtype)
        count = self.length
        low = np.frombuffer(data, "<u2", count).astype(np.uint32)
        high = np.frombuffer(data, np.uint8, offset=2 * count)
        if self.width == 20:
            if count % 2 and high[-1] >> 4:
                raise MalformedMessage("A masked vector goes on after its last element.")
            high = np.stack([high & np.uint8(15), high >> np.uint8(4)], axis=1).ravel()[:count]
        return low | high.astype(np.uint32) << np.uint32(16)

    def digest(self, vector: RingVector) -> bytes:
        """Returns the 32-byte digest that a site signs for its masked vector."""
        if self.width in (20, 24):
            return tagged_hash("digest", hashlib.sha256(self.pack(vector)).digest())
        digests = [b""] * -(-len(vector) // LANE)

        def hash_lane(lane: int, part: slice) -> None:
            digests[lane] = hashlib.sha256(np.ascontiguousarray(vector[part]).data).digest()

        each_lane(len(vector), hash_lane)
        return tagged_hash("digest", *digests)

    @property
    def _mask(self) -> int:
        return (1 << self.width) - 1

    def _encode_lane(self, values: Vector, factor: np.float32, out: RingVector) -> None:
        bound = np.float32(self.clip)
        buffer = np.empty(_CHUNK, np.float32)
        for start in range(0, len(values), _CHUNK):
            piece = values[start : start + _CHUNK]
            scaled = buffer[: len(piece)]
            if not (np.isfinite(piece.min()) and np.isfinite(piece.max())):
                raise EncodingError("A value is not finite; training diverged.")
            np.clip(piece, -bound, bound, out=scaled)
            np.multiply(scaled, factor, out=scaled)
            np.rint(scaled, out=scaled)
            whole = scaled.astype(np.int32).view(np.uint32)
            if self.width in (20, 24):
                whole &= np.uint32(self._mask)
            out[start : start + _CHUNK] = whole
