"""Reads WAV files as samples from -1 to 1, as many as a data set declares."""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import FileDamaged, SizeMismatch

ENDINGS = (".wav",)


def read_wav(path: Path, samples: int, rate_hz: int, *, fit: bool) -> NDArray[np.float32]:
    """Returns a sound, float32, shape [samples]; the mean of its channels.

    Args:
        path: the file; samples of 8, 16, 24 or 32 bits.
        samples: how many.
        rate_hz: how many a second.
        fit: whether a longer sound is cut off and a shorter one filled up with silence.

    Raises:
        FileDamaged: it is no whole WAV file of uncompressed samples.
        SizeMismatch: it has another rate or length.
    """
    try:
        with path.open("rb") as file, wave.open(file) as opened:
            channels, width, rate, count, *_ = opened.getparams()
            data = opened.readframes(count)
        whole = channels * width > 0 and len(data) == count * channels * width
    except (OSError, EOFError, ValueError, wave.Error):
        whole = False
    if not whole or width not in (1, 2, 3, 4):
        raise FileDamaged(
            "A file is no whole WAV file of uncompressed samples: export it again, or remove it"
        )
    if rate != rate_hz:
        raise SizeMismatch(f"A sound should have {rate_hz} samples a second: resample it")
    if count != samples and not fit:
        raise SizeMismatch(
            f"A sound should have {samples} samples: cut it so, or set data.source.fit"
        )
    values = _numbers(data, width).reshape(count, channels)[:samples].mean(axis=1)
    return np.pad(values, (0, samples - len(values))).astype(np.float32)


def _numbers(data: bytes, width: int) -> NDArray[np.float64]:
    """Returns samples of ``width`` bytes each as numbers from -1 to 1."""
    if width == 1:  # the only one without a sign
        return np.frombuffer(data, np.uint8) / 128.0 - 1.0
    # The high bytes of 32-bit numbers, which have the sign.
    held = np.zeros((len(data) // width, 4), np.uint8)
    held[:, 4 - width :] = np.frombuffer(data, np.uint8).reshape(-1, width)
    found: NDArray[np.float64] = held.view("<i4").reshape(-1) / 2.0**31
    return found
