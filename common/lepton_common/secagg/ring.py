"""Fixed-point codec: float32 vectors as elements of the ring of integers modulo 2**width.

The scale leaves room for the sum of all parties, so a sum never wraps around.
"""

import hashlib
import io
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector
from lepton_common.errors import EncodingError, MalformedMessage
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.masks import LANE, RingVector, each_lane, lane_bytes

WIDTHS = (16, 20, 24, 32)
# Elements. Temporaries stay in the cache; smaller pieces make threads wait for Python's lock.
_CHUNK = 1 << 17
_MOST_SCALE_BITS = 60
_STEP = np.float32(1 / 256)


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
        if not (0 < self.clip < 1e30) or self._bound == 0:
            raise ValueError("the clip should be a positive float32.")
        if self.dimension < 1 or not 0 <= self.weight_bits <= 32:
            raise ValueError("there should be a value or more, and 0 to 32 weight bits.")
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
        return self.width - 1 - (self.parties - 1).bit_length()

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
        most = Fraction((2 ** (self.width - 1) - 1) // self.parties) / Fraction(self.clip)
        # In whole numbers: a rounded logarithm can come out one too high.
        scale = most.numerator.bit_length() - most.denominator.bit_length()
        return scale if most >= Fraction(2) ** scale else scale - 1

    def encode(
        self, values: Vector, weight: float = 1.0, dither: bytes | None = None
    ) -> RingVector:
        """Returns weighted values, clipped to ±``clip``, and the weight, shape [D].

        Args:
            values: float32, shape [d].
            weight: in (0, 1]; rounded to ``weight_bits``, at least one unit, and applied so.
            dither: a fresh secret key, 32 bytes, for stochastic rounding (Gupta et al. 2015), at
                a width of 16; None: to the nearest.

        Raises:
            EncodingError: a value is not finite, the weight out of bounds, or the values of
                another type or number.
        """
        if values.dtype != np.float32 or values.shape != (self.dimension,):
            raise EncodingError(f"There should be {self.dimension} values of type float32.")
        if not 0 < weight <= 1:
            raise EncodingError("A weight should be above 0 and at most 1.")
        if dither is not None and self.width != 16:
            raise EncodingError("Stochastic rounding is for rings of 16 bits.")
        units = max(1, round(weight * 2**self.weight_bits))
        factor = np.float32(2.0**self.scale_bits * units / 2**self.weight_bits)
        out: RingVector = np.empty(self.length, self.dtype)
        each_lane(
            self.dimension,
            lambda lane, part: self._encode_lane(
                values[part],
                factor,
                out[: self.dimension][part],
                None if dither is None else (dither, lane),
            ),
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
        unused = 8 * self.dtype.itemsize - self.width

        def decode_lane(_: int, part: slice) -> None:
            for piece in _pieces(part, self.dimension):
                # Shifted to the top of the word and back, the sign fills the unused bits.
                signed = (total[piece] << unused).view(self._signed) >> unused
                np.multiply(signed, math.ldexp(1.0, -self.scale_bits), out=values[piece])

        each_lane(self.dimension, decode_lane)
        return values, weight / 2**self.weight_bits

    def pack(self, vector: RingVector) -> bytes:
        """Returns the elements as bytes: planes of 16 bits and of the rest."""
        # Written in place: the buffer is handed out as the bytes it is, without a copy. Its pages
        # are new, which costs more than copying does, so that threads help there too.
        stream = io.BytesIO(bytes(self.packed_bytes))
        with stream.getbuffer() as buffer:
            if self.width in (16, 32):
                _copy_lanes(vector, np.frombuffer(buffer, self.dtype))
            else:
                for start, piece in self._planes(vector):
                    buffer[start : start + len(piece)] = piece
        return stream.getvalue()

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
        low = np.frombuffer(data, "<u2", count)
        high = np.frombuffer(data, np.uint8, offset=2 * count)
        if self.width == 20 and count % 2 and high[-1] >> 4:
            raise MalformedMessage("A masked vector goes on after its last element.")
        vector = np.empty(count, self.dtype)
        each_lane(count, lambda _, part: self._join_lane(low, high, vector, part))
        return vector

    def digest(self, vector: RingVector) -> bytes:
        """Returns the 32-byte digest that a site signs for its masked vector."""
        if self.width in (20, 24):
            packed = hashlib.sha256()
            for _, piece in self._planes(vector):
                packed.update(piece)
            return tagged_hash("digest", packed.digest())
        digests = [b""] * -(-len(vector) // LANE)

        def hash_lane(lane: int, part: slice) -> None:
            digests[lane] = hashlib.sha256(np.ascontiguousarray(vector[part]).data).digest()

        each_lane(len(vector), hash_lane)
        return tagged_hash("digest", *digests)

    @property
    def _mask(self) -> int:
        return (1 << self.width) - 1

    @property
    def _signed(self) -> str:
        return "<i2" if self.width == 16 else "<i4"

    @cached_property
    def _bound(self) -> np.float32:
        """The largest float32 that is not above ``clip``; any larger one could overflow."""
        bound = np.float32(self.clip)
        return bound if float(bound) <= self.clip else np.nextafter(bound, np.float32(0))

    def _encode_lane(
        self,
        values: Vector,
        factor: np.float32,
        out: RingVector,
        dither: tuple[bytes, int] | None,
    ) -> None:
        buffer = np.empty(min(_CHUNK, len(values)), np.float32)
        noise = lane_bytes(*dither, len(values)) if dither else None
        signed = out.view(self._signed)
        for piece in _pieces(slice(0, len(values)), len(values)):
            came = values[piece]
            scaled = buffer[: len(came)]
            if not (np.isfinite(came.min()) and np.isfinite(came.max())):
                raise EncodingError("A value is not finite; training diverged.")
            np.clip(came, -self._bound, self._bound, out=scaled)
            np.multiply(scaled, factor, out=scaled)
            if noise is None:
                np.rint(scaled, out=scaled)
            else:
                # Odd multiples of 1/512: what is below 2**15 can take them without rounding.
                scaled += noise[piece].astype(np.float32) * _STEP + _STEP / 2
                np.floor(scaled, out=scaled)
            np.copyto(signed[piece], scaled, casting="unsafe")
            if self.width in (20, 24):
                out[piece] &= self._mask

    def _planes(self, vector: RingVector) -> Iterator[tuple[int, bytes]]:
        """Yields the packed form of widths 20 and 24 piece by piece, each with its position."""
        for piece in _pieces(slice(0, self.length), self.length):
            yield 2 * piece.start, vector[piece].astype("<u2").tobytes()
        for piece in _pieces(slice(0, self.length), self.length):
            high = (vector[piece] >> 16).astype(np.uint8)
            if self.width == 24:
                yield 2 * self.length + piece.start, high.tobytes()
                continue
            nibbles = high[::2] & 15
            nibbles[: len(high) // 2] |= high[1::2] << 4
            yield 2 * self.length + piece.start // 2, nibbles.tobytes()

    def _join_lane(
        self, low: NDArray[np.uint16], high: NDArray[np.uint8], vector: RingVector, part: slice
    ) -> None:
        """Writes the elements of one lane, given both planes of the whole vector."""
        for piece in _pieces(part, self.length):
            target = vector[piece]
            if self.width == 24:
                target[:] = high[piece]
            else:
                nibbles = high[piece.start // 2 : (piece.stop + 1) // 2]
                target[::2] = nibbles & 15
                target[1::2] = nibbles[: len(target) // 2] >> 4
            target <<= 16
            target |= low[piece]


def _copy_lanes(source: RingVector, target: RingVector) -> None:
    each_lane(len(target), lambda _, part: np.copyto(target[part], source[part]))


def _pieces(part: slice, length: int) -> Iterator[slice]:
    """Yields slices of at most ``_CHUNK`` elements that make up ``part`` of a vector."""
    stop = min(part.stop, length)
    for start in range(part.start, stop, _CHUNK):
        yield slice(start, min(start + _CHUNK, stop))
