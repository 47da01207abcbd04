"""Scattering coefficients of images: fixed wavelet features that nothing was learnt for.

Two scales and eight angles up to second order, 81 coefficients a colour and place, as in F. Tramèr
and D. Boneh, Differentially Private Learning Needs Better Features (ICLR 2021), after E. Oyallon
and S. Mallat (CVPR 2015). Each record is normalised by itself, in 27 groups of channels.
"""

import hashlib
import os
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from lepton_common.cache import cache_folder
from lepton_common.durable import write_atomic

SCALES, ANGLES, GROUPS = 2, 8, 27
CHANNELS = 1 + SCALES * ANGLES + ANGLES**2 * SCALES * (SCALES - 1) // 2  # of each colour: 81
_BLOCK = 5000  # records in a file of the cache
_AT_ONCE = 250
_LONG = 5000  # records that take a second or more
_DIGEST_BYTES = 32


def scattering_features(images: NDArray[np.float32]) -> torch.Tensor:
    """Returns the features of images, float32, shape [n, colours * 81, height // 4, width // 4].

    A record's features depend on that record alone. They are rounded to half precision, which is
    how they are kept in the user's cache, so that cached ones and new ones are the same.

    Args:
        images: values in 0..1, shape [n, colours, height, width], at least 8x8.
    """
    blocks = [images[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)]
    kept = [(block, _key(block)) for block in blocks]
    count, colours, height, width = images.shape
    features = torch.empty(count, colours * CHANNELS, height // 4, width // 4)
    missing = []
    for index, (block, key) in enumerate(kept):
        shape = (len(block), *features.shape[1:])
        if (found := _read(_path(key), key, shape)) is None:
            missing.append(index)
        else:
            features[index * _BLOCK : index * _BLOCK + len(block)] = torch.from_numpy(found)
    for index in _announced(missing, sum(len(blocks[index]) for index in missing)):
        block, key = kept[index]
        computed = _compute(block)
        features[index * _BLOCK : index * _BLOCK + len(block)] = torch.from_numpy(computed)
        _write(_path(key), key, computed)
    return features


def _compute(images: NDArray[np.float32]) -> NDArray[np.float16]:
    # Here, because kymatio's own entry point does not import with this SciPy, and few runs need it.
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    transform = ScatteringTorch2D(J=SCALES, shape=images.shape[2:], L=ANGLES)

    @torch.no_grad()
    def work(start: int) -> NDArray[np.float16]:
        values = torch.from_numpy(np.ascontiguousarray(images[start : start + _AT_ONCE]))
        coefficients = transform(values).flatten(1, 2)
        return functional.group_norm(coefficients, GROUPS).half().numpy()

    # One thread for each of many small steps: several, on a busy machine, wait for one another.
    with ThreadPoolExecutor(
        os.cpu_count(), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        return np.concatenate(list(pool.map(work, range(0, len(images), _AT_ONCE))))


def _announced(blocks: list[int], records: int) -> Iterable[int]:
    """Yields the blocks, with a bar on a terminal and a line elsewhere if it will take long."""
    if records < _LONG:
        return blocks
    from rich.console import Console
    from rich.progress import track

    text = f"Scattering {records:,} images, once"
    if not sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr)  # noqa: T201
        return blocks
    return track(blocks, text, console=Console(stderr=True), transient=True)


def _key(images: NDArray[np.float32]) -> bytes:
    """Returns what the features follow from, as 32 bytes: the images and all parameters."""
    about = (
        f"{images.shape} {SCALES} {ANGLES} {GROUPS} float16 kymatio {metadata.version('kymatio')}"
    )
    digest = hashlib.sha256(about.encode())
    digest.update(np.ascontiguousarray(images, "<f4").data)
    return digest.digest()


def _path(key: bytes) -> Path:
    return cache_folder() / "scattering" / f"{key.hex()}.f16"


def _read(path: Path, key: bytes, shape: Sequence[int]) -> NDArray[np.float16] | None:
    """Returns kept features, or None where there are none, or damaged or another block's."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError:
        return None
    kept, values = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    if values.size != 2 * np.prod(shape) or kept.tobytes() != _digest(key, values):
        return None
    return values.view("<f2").astype(np.float16, copy=False).reshape(shape)


def _write(path: Path, key: bytes, features: NDArray[np.float16]) -> None:
    values = np.ascontiguousarray(features, "<f2").reshape(-1).view(np.uint8)
    # Readable by the user alone: at a site these are private records, if in another form. A cache
    # that cannot be written is no reason to fail.
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, _digest(key, values) + values.tobytes(), mode=0o600)


def _digest(key: bytes, values: NDArray[np.uint8]) -> bytes:
    digest = hashlib.sha256(key)
    digest.update(values.data)
    return digest.digest()
