"""Masks: AES-256-CTR keystreams added to a ring vector in one pass over its memory.

A keystream of a key consists of lanes of 2**20 elements, each with its own initial counter
block (lane, 12 bytes | 00000002), so lanes can be made in any order and on any thread.

The stream of AES-256-GCM over zeros, with the lane as nonce, is the same keystream: GCM starts
counting its data at 2 (NIST SP 800-38D). OpenSSL computes one or the other faster, depending on
the processor; both are tried when this module is imported.
"""

import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

LANE = 1 << 20
RingVector = NDArray[np.unsignedinteger[Any]]
Mask = tuple[bytes, int]

_PART = 1 << 18  # elements of one task where there are few lanes, if the backend allows it
_FEW_LANES = 8
# Bytes. Keystream and vector stay in the cache; smaller ones are slower on several threads, which
# then wait for each other's Python more often than they compute.
CHUNK = 1 << 18
_COUNTER = 2  # of the first block of a lane
_ZEROS = memoryview(bytes(CHUNK))
_SLOWER = 0.95  # a backend must be this much faster than the plain one to be chosen


class Keystream(Protocol):
    """Encrypts zeros into a buffer, from where it stopped before."""

    def update_into(self, data: memoryview, buffer: bytearray) -> int:
        """Writes the keystream's next ``len(data)`` bytes."""


def _ctr(key: bytes, lane: int, block: int) -> Keystream:
    start = lane.to_bytes(12) + (_COUNTER + block).to_bytes(4)
    return Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()


def _gcm(key: bytes, lane: int, block: int) -> Keystream:
    if block:
        raise ValueError("GCM begins at the first block of a lane only.")
    # Never finalised: only the stream is wanted, and there is nothing to authenticate.
    return Cipher(algorithms.AES(key), modes.GCM(lane.to_bytes(12))).encryptor()


BACKENDS: dict[str, Callable[[bytes, int, int], Keystream]] = {"ctr": _ctr, "gcm": _gcm}


def add_masks(
    vector: RingVector,
    masks: Sequence[Mask],
    width: int,
    threads: int | None = None,
    backend: str | None = None,
) -> None:
    """Adds each mask times its sign to ``vector`` in place, modulo 2**width.

    Memory is passed over once whatever the number of masks: all of them are added to a piece
    while it is in the cache.

    Args:
        vector: little-endian uint16 for a width of 16, else uint32; shape [D].
        masks: 32-byte keys, each with +1 or -1.
        width: bits of the ring: 16, 20, 24 or 32.
        threads: parts worked on at a time; None: one per core.
        backend: a name in `BACKENDS`; None: the chosen one.

    Raises:
        ValueError: the vector has another type, so that the stream's words would not fit.
    """
    dtype = np.dtype("<u2" if width == 16 else "<u4")
    if vector.dtype != dtype or vector.ndim != 1:
        raise ValueError(f"A vector of width {width} should be of type {dtype}.")
    name = backend or _chosen

    def work(_: int, part: slice) -> None:
        MaskStreams(masks, part.start, width, name).add_to(vector[part])

    each_part(len(vector), part_size(len(vector), name), work, threads)


class MaskStreams:
    """Several masks from one element of a vector on, to be added piece by piece."""

    def __init__(
        self, masks: Sequence[Mask], start: int, width: int, backend: str | None = None
    ) -> None:
        """Opens the keystreams.

        Args:
            masks: 32-byte keys, each with +1 or -1.
            start: position of the first element; with GCM the first of a lane.
            width: bits of the ring.
            backend: a name in `BACKENDS`; None: the chosen one.
        """
        size = 2 if width == 16 else 4
        self._streams = [
            (open_stream(key, start, size, backend), np.add if sign > 0 else np.subtract)
            for key, sign in masks
        ]
        self._width, self._buffer = width, bytearray(CHUNK)

    def add_to(self, part: RingVector) -> None:
        """Adds all masks to the next elements, in place, modulo 2**width."""
        words = np.frombuffer(self._buffer, part.dtype)
        for start in range(0, len(part), len(words)):
            piece = part[start : start + len(words)]
            zeros, count = _ZEROS[: piece.nbytes], len(piece)
            for stream, combine in self._streams:
                stream.update_into(zeros, self._buffer)
                combine(piece, words[:count], out=piece)
            if self._width in (20, 24):
                piece &= piece.dtype.type(2**self._width - 1)


def each_lane(length: int, work: Callable[[int, slice], None], threads: int | None = None) -> None:
    """Calls ``work(lane, slice)`` for each lane of a vector, on several threads."""
    each_part(length, LANE, work, threads)


def each_part(
    length: int, size: int, work: Callable[[int, slice], None], threads: int | None = None
) -> None:
    """Calls ``work(index, slice)`` for each ``size`` elements of a vector, on several threads."""
    starts = range(0, length, size)
    parts = [(index, slice(start, start + size)) for index, start in enumerate(starts)]
    threads = min(threads or os.cpu_count() or 1, len(parts))
    if threads <= 1:
        for index, part in parts:
            work(index, part)
        return
    # Made anew each time, in 0.1 ms: a pool that outlives a fork would hang the new process.
    with ThreadPoolExecutor(threads, thread_name_prefix="lepton-lanes") as pool:
        list(pool.map(lambda item: work(*item), parts))


def part_size(length: int, backend: str | None = None) -> int:
    """Returns how many elements one task should mask: a lane, or less where lanes are few."""
    return _PART if (backend or _chosen) == "ctr" and length < _FEW_LANES * LANE else LANE


def keystream(key: bytes, count: int, backend: str | None = None) -> NDArray[np.uint8]:
    """Returns the first ``count`` bytes of lane 0, by the chosen backend or another."""
    return lane_bytes(key, 0, count, backend)


def open_stream(key: bytes, start: int, size: int, backend: str | None = None) -> Keystream:
    """Returns the keystream from one element of ``size`` bytes on, up to the end of its lane.

    With GCM that element must be the first of a lane.
    """
    lane, inside = divmod(start, LANE)
    return BACKENDS[backend or _chosen](key, lane, inside * size // 16)


def lane_bytes(key: bytes, lane: int, count: int, backend: str | None = None) -> NDArray[np.uint8]:
    """Returns the first ``count`` bytes of a lane."""
    out = bytearray(count)
    BACKENDS[backend or _chosen](key, lane, 0).update_into(memoryview(bytes(count)), out)
    return np.frombuffer(out, np.uint8)


def chosen_backend() -> str:
    """Returns the name of the backend in use."""
    return _chosen


def _calibrate() -> str:
    """Returns the fastest backend whose keystream is that of plain CTR."""
    key = bytes(range(32))
    expected = keystream(key, CHUNK, "ctr")
    best, chosen = _seconds("ctr"), "ctr"
    for name in BACKENDS:
        if not np.array_equal(keystream(key, CHUNK, name), expected):
            continue
        took = _seconds(name)
        if took < _SLOWER * best:
            best, chosen = took, name
    return chosen


def _seconds(backend: str) -> float:
    stream, buffer = BACKENDS[backend](bytes(32), 0, 0), bytearray(CHUNK)
    best = float("inf")
    for _ in range(8):
        began = time.perf_counter()
        stream.update_into(_ZEROS, buffer)
        best = min(best, time.perf_counter() - began)
    return best


_chosen = _calibrate()
