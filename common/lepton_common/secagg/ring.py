"""Fixed-point codec: float32 vectors as elements of the ring of integers modulo 2**width.

The scale leaves room for the sum of all parties, so a sum never wraps around.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector
from lepton_common.errors import EncodingError
from lepton_common.secagg import packing
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.masks import (
    LANE,
    Mask,
    MaskStreams,
    RingVector,
    add_masks,
    each_lane,
    each_part,
    open_stream,
    part_size,
)
from lepton_common.secagg.packing import CHUNK, pieces

WIDTHS = (16, 20, 24, 32)
_MOST_SCALE_BITS = 60
_STEP = np.float32(1 / 256)
# Values that are whole already, and noised: they are taken modulo 2**width and never clipped.
Integers = NDArray[np.int64]
# Writes a part of an encoded vector, piece by piece, and yields each.
_Encode = Callable[[slice, RingVector], Iterator[RingVector]]


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
        return packing.element_type(self.width)

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
        return packing.packed_bytes(self.width, self.length)

    @cached_property
    def scale_bits(self) -> int:
        """s: a value x is the integer x * 2**s; n values of at most ``clip`` do not overflow."""
        most = Fraction((2 ** (self.width - 1) - 1) // self.parties) / Fraction(self.clip)
        # In whole numbers: a rounded logarithm can come out one too high.
        scale = most.numerator.bit_length() - most.denominator.bit_length()
        return scale if most >= Fraction(2) ** scale else scale - 1

    def encode(
        self, values: Vector | Integers, weight: float = 1.0, dither: bytes | None = None
    ) -> RingVector:
        """Returns weighted values, clipped to ±``clip``, and the weight, shape [D].

        Args:
            values: float32, shape [d]; or int64, which are elements of the ring as they are, in
                a ring of ``whole_clip``.
            weight: in (0, 1]; rounded to ``weight_bits``, at least one unit, and applied so.
            dither: a fresh secret key, 32 bytes, for stochastic rounding (Gupta et al. 2015), at
                a width of 16; None: to the nearest.

        Raises:
            EncodingError: a value is not finite, the weight out of bounds, or the values of
                another type or number.
        """
        encode = self._encoder(values, weight, dither)
        out: RingVector = np.empty(self.length, self.dtype)

        def fill(_: int, part: slice) -> None:
            for _piece in encode(part, out):
                pass

        each_lane(self.length, fill)
        return out

    def mask(
        self,
        values: Vector | Integers,
        masks: Sequence[Mask],
        weight: float = 1.0,
        dither: bytes | None = None,
    ) -> tuple[bytes, bytes]:
        """Encodes and masks; returns the packed vector and its digest.

        The same as `encode`, `add_masks`, `pack` and `digest`, but each piece goes through all of
        them while it is in the cache, and is written to where it is sent from.

        Raises:
            EncodingError: see `encode`.
        """
        encode = self._encoder(values, weight, dither)
        if self.width in (20, 24):
            vector = self.encode(values, weight, dither)
            add_masks(vector, masks, self.width)
            return self.pack(vector), self.digest(vector)
        stream = packing.new_pages(self.packed_bytes)
        with stream.getbuffer() as buffer:
            digest = self._mask_into(np.frombuffer(buffer, self.dtype), encode, masks)
        return stream.getvalue(), digest

    def decode(self, total: RingVector) -> tuple[NDArray[np.float64], float]:
        """Returns the sum of weighted values, float64, shape [d], and the sum of weights."""
        weight = sum(
            (int(total[self.dimension + limb]) & self._mask) << (limb * self.limb_width)
            for limb in range(self.limbs)
        )
        values = np.empty(self.dimension, np.float64)
        unused = 8 * self.dtype.itemsize - self.width

        def decode_lane(_: int, part: slice) -> None:
            for piece in pieces(part, self.dimension):
                # Shifted to the top of the word and back, the sign fills the unused bits.
                signed = (total[piece] << unused).view(self._signed) >> unused
                np.multiply(signed, math.ldexp(1.0, -self.scale_bits), out=values[piece])

        each_lane(self.dimension, decode_lane)
        return values, weight / 2**self.weight_bits

    def pack(self, vector: RingVector) -> bytes:
        """Returns the elements as bytes; see `packing`."""
        return packing.pack(vector, self.width)

    def unpack(self, data: bytes) -> RingVector:
        """Returns the elements that `pack` packed; may share the memory of ``data``.

        Raises:
            MalformedMessage: not exactly such bytes.
        """
        return packing.unpack(data, self.width, self.length)

    def digest(self, vector: RingVector) -> bytes:
        """Returns the 32-byte digest that a site signs for its masked vector."""
        return packing.digest(vector, self.width)

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

    def _encoder(self, values: Vector | Integers, weight: float, dither: bytes | None) -> _Encode:
        """Returns what writes a part of the encoded vector, piece by piece, and yields each.

        Raises:
            EncodingError: see `encode`.
        """
        whole = values.dtype == np.int64
        if not (whole or values.dtype == np.float32) or values.shape != (self.dimension,):
            raise EncodingError(f"There should be {self.dimension} values of type float32.")
        if whole and (weight != 1.0 or dither is not None or self.scale_bits):
            raise EncodingError("Whole numbers are not scaled, weighted or rounded.")
        if not 0 < weight <= 1:
            raise EncodingError("A weight should be above 0 and at most 1.")
        if dither is not None and self.width != 16:
            raise EncodingError("Stochastic rounding is for rings of 16 bits.")
        units = max(1, round(weight * 2**self.weight_bits))
        factor = np.float32(2.0**self.scale_bits * units / 2**self.weight_bits)
        limbs = [
            units >> (limb * self.limb_width) & (2**self.limb_width - 1)
            for limb in range(self.limbs)
        ]

        def encode(part: slice, out: RingVector) -> Iterator[RingVector]:
            scratch = np.empty(CHUNK, np.float32)
            noise = None if dither is None else _Dither(dither, part.start)
            for piece in pieces(part, self.length):
                came, target = values[piece], out[piece]
                self._encode_piece(came, factor, target[: len(came)], scratch, noise)
                behind = max(piece.start - self.dimension, 0)
                target[len(came) :] = limbs[behind : behind + len(target) - len(came)]
                yield target

        return encode

    def _mask_into(self, out: RingVector, encode: _Encode, masks: Sequence[Mask]) -> bytes:
        """Writes the masked vector and returns its digest."""
        size = part_size(self.length)
        digests = [b""] * -(-self.length // size)

        def work(index: int, part: slice) -> None:
            streams, hashed = MaskStreams(masks, part.start, self.width), hashlib.sha256()
            for piece in encode(part, out):
                streams.add_to(piece)
                if size == LANE:
                    hashed.update(piece.data)
            digests[index] = hashed.digest()

        each_part(self.length, size, work)
        return tagged_hash("digest", *digests) if size == LANE else self.digest(out)

    def _encode_piece(
        self,
        values: Vector | Integers,
        factor: np.float32,
        out: RingVector,
        scratch: Vector,
        noise: "_Dither | None",
    ) -> None:
        if values.dtype == np.int64:
            modulo = values.view(np.uint64) & np.uint64(self._mask)
            np.copyto(out, modulo, casting="unsafe")
            return
        scaled = scratch[: len(values)]
        low, high = values.min(initial=0), values.max(initial=0)
        if not (np.isfinite(low) and np.isfinite(high)):
            raise EncodingError("A value is not finite; training diverged.")
        if max(-low, high) > self._bound:
            values = np.clip(values, -self._bound, self._bound, out=scaled)
        np.multiply(values, factor, out=scaled)
        if noise is None:
            np.rint(scaled, out=scaled)
        else:
            scaled += noise.next(len(scaled))
            np.floor(scaled, out=scaled)
        np.copyto(out.view(self._signed), scaled, casting="unsafe")
        if self.width in (20, 24):
            out &= self._mask


def whole_clip(width: int, parties: int) -> float:
    """Returns the clip of a ring in which a step is 1, for whole numbers."""
    return float((2 ** (width - 1) - 1) // parties)


class _Dither:
    """Uniform values in (0, 1) from one element of a vector on: odd multiples of 1/512.

    What is below 2**15 can take them without being rounded itself.
    """

    def __init__(self, key: bytes, start: int) -> None:
        self._stream, self._buffer = open_stream(key, start, 1), bytearray(CHUNK)

    def next(self, count: int) -> Vector:
        """Returns the next ``count`` values, float32."""
        self._stream.update_into(memoryview(bytes(count)), self._buffer)
        drawn = np.frombuffer(self._buffer, np.uint8, count)
        uniform: Vector = drawn.astype(np.float32) * _STEP + _STEP / 2
        return uniform
