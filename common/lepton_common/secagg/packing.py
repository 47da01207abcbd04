"""Ring vectors as the bytes that are sent, and the digest that is signed for them.

Widths of 16 and 32 bits are little-endian words; 20 and 24 bits are a plane of 16-bit words and
a plane of the bits above.
"""

import hashlib
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import MalformedMessage
from lepton_common.pages import use_huge_pages
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.masks import LANE, RingVector, each_lane

# Elements. Temporaries stay in the cache; smaller pieces make threads wait for Python's lock.
CHUNK = 1 << 18


def element_type(width: int) -> np.dtype[np.unsignedinteger[Any]]:
    """Returns the type of a ring element in memory."""
    return np.dtype("<u2") if width == 16 else np.dtype("<u4")


def packed_bytes(width: int, length: int) -> int:
    """Returns the length of a packed vector of ``length`` elements."""
    if width == 20:
        return 2 * length + (length + 1) // 2
    return length * width // 8


def pack(vector: RingVector, width: int) -> bytes:
    """Returns the elements as bytes."""
    stream = new_pages(packed_bytes(width, len(vector)))
    with stream.getbuffer() as buffer:
        if width in (16, 32):
            _copy_lanes(vector, np.frombuffer(buffer, vector.dtype))
        else:
            for start, piece in _planes(vector, width):
                buffer[start : start + len(piece)] = piece
    return stream.getvalue()


def unpack(data: bytes, width: int, length: int) -> RingVector:
    """Returns the elements that `pack` packed; may share the memory of ``data``.

    Raises:
        MalformedMessage: not exactly such bytes.
    """
    expected = packed_bytes(width, length)
    if len(data) != expected:
        raise MalformedMessage(f"A masked vector should have {expected} bytes, not {len(data)}.")
    if width in (16, 32):
        return np.frombuffer(data, element_type(width))
    low = np.frombuffer(data, "<u2", length)
    high = np.frombuffer(data, np.uint8, offset=2 * length)
    if width == 20 and length % 2 and high[-1] >> 4:
        raise MalformedMessage("A masked vector goes on after its last element.")
    vector = np.empty(length, element_type(width))
    each_lane(length, lambda _, part: _join_lane(low, high, vector, part, width))
    return vector


def digest(vector: RingVector, width: int) -> bytes:
    """Returns the 32-byte digest that a site signs for its masked vector."""
    if width in (20, 24):
        packed = hashlib.sha256()
        for _, piece in _planes(vector, width):
            packed.update(piece)
        return tagged_hash("digest", packed.digest())
    digests = [b""] * -(-len(vector) // LANE)

    def hash_lane(lane: int, part: slice) -> None:
        digests[lane] = hashlib.sha256(np.ascontiguousarray(vector[part]).data).digest()

    each_lane(len(vector), hash_lane)
    return tagged_hash("digest", *digests)


def new_pages(length: int) -> io.BytesIO:
    """Returns zeros to be written in place and then handed out as bytes, without a copy.

    New pages cost more than what is written to them, so large ones are asked for.
    """
    stream = io.BytesIO(bytes(length))
    with stream.getbuffer() as buffer:
        use_huge_pages(buffer)
    return stream


def pieces(part: slice, length: int) -> Iterator[slice]:
    """Yields slices of at most ``CHUNK`` elements that make up ``part`` of a vector."""
    stop = min(part.stop, length)
    for start in range(part.start, stop, CHUNK):
        yield slice(start, min(start + CHUNK, stop))


def _copy_lanes(source: RingVector, target: RingVector) -> None:
    each_lane(len(target), lambda _, part: np.copyto(target[part], source[part]))


def _planes(vector: RingVector, width: int) -> Iterator[tuple[int, bytes]]:
    """Yields the packed form of widths 20 and 24 piece by piece, each with its position."""
    length = len(vector)
    for piece in pieces(slice(0, length), length):
        yield 2 * piece.start, vector[piece].astype("<u2").tobytes()
    for piece in pieces(slice(0, length), length):
        high = (vector[piece] >> 16).astype(np.uint8)
        if width == 24:
            yield 2 * length + piece.start, high.tobytes()
            continue
        nibbles = high[::2] & 15
        nibbles[: len(high) // 2] |= high[1::2] << 4
        yield 2 * length + piece.start // 2, nibbles.tobytes()


def _join_lane(
    low: NDArray[np.uint16], high: NDArray[np.uint8], vector: RingVector, part: slice, width: int
) -> None:
    """Writes the elements of one lane, given both planes of the whole vector."""
    for piece in pieces(part, len(vector)):
        target = vector[piece]
        if width == 24:
            target[:] = high[piece]
        else:
            nibbles = high[piece.start // 2 : (piece.stop + 1) // 2]
            target[::2] = nibbles & 15
            target[1::2] = nibbles[: len(target) // 2] >> 4
        target <<= 16
        target |= low[piece]
