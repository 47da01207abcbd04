"""Masks: AES-256-CTR keystreams added to ring vectors, lane by lane, in one pass over memory."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import os

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

LANE = 1 << 20
_CHUNK_BYTES = 1 << 17
_POOL = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="lepton-masks")


def add_masks(vector: NDArray[np.generic], masks: Sequence[tuple[bytes, int]], width: int, threads: int | None = None) -> None:
    """Adds each keystream times its sign to ``vector`` in place, modulo 2**width."""
    lanes = range(0, len(vector), LANE)
    work = [(index, vector[start : start + LANE]) for index, start in enumerate(lanes)]
    if len(work) == 1 or threads == 1:
        for index, lane in work:
            _mask_lane(lane, index, masks, width)
        return
    list(_POOL.map(lambda item: _mask_lane(item[1], item[0], masks, width), work))


def _mask_lane(lane: NDArray[np.generic], index: int, masks: Sequence[tuple[bytes, int]], width: int) -> None:
    step = _CHUNK_BYTES // lane.itemsize
    zeros = bytes(_CHUNK_BYTES)
    buffer = bytearray(_CHUNK_BYTES)
    words = np.frombuffer(buffer, lane.dtype)
    iv = index.to_bytes(12) + (2).to_bytes(4)
    streams = [(Cipher(algorithms.AES(key), modes.CTR(iv)).encryptor(), sign) for key, sign in masks]
    for start in range(0, len(lane), step):
        piece = lane[start : start + step]
        for stream, sign in streams:
            stream.update_into(memoryview(zeros)[: piece.nbytes], buffer)
            if sign > 0:
                np.add(piece, words[: len(piece)], out=piece)
            else:
                np.subtract(piece, words[: len(piece)], out=piece)
        if width in (20, 24):
            piece &= lane.dtype.type(2**width - 1)
