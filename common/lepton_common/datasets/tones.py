"""Made-up sounds of five kinds under noise; there is no published set behind them."""

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.preparation import check_offered
from lepton_common.datasets.records import Dataset, Records

KINDS = ("steady", "rising", "falling", "pulsing", "hiss")
RATE_HZ = 4000
SAMPLES = 2048
_TRAIN, _TEST = 500, 250
_LOUDNESS, _NOISE = 0.5, 0.1


def tones(root: str | None, prepare: str) -> Dataset:
    """500 and 250 sounds of half a second at 4 kHz, between -1 and 1: which of five kinds it is.

    A steady tone, one that rises or falls by an octave, one that comes and goes, or a hiss; each
    of its own pitch, phase and loudness, under noise. Whoever knows how they are made can tell
    all of them apart: 1.0 can be reached. ``root`` is not read.
    """
    del root
    check_offered("tones", prepare, {"public_ranges"})
    labels = np.resize(np.arange(len(KINDS)), _TRAIN + _TEST)
    sounds = made_up_sounds(labels, seed=16)
    everything = Records(torch.from_numpy(sounds), torch.from_numpy(labels))
    return Dataset(
        name="tones",
        train=everything.take(np.arange(_TRAIN)),
        test=everything.take(np.arange(_TRAIN, _TRAIN + _TEST)),
        input_shape=(SAMPLES,),
        classes=len(KINDS),
        notes=("Made up: there are no real recordings behind these sounds.",),
    )


def made_up_sounds(labels: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Returns a sound of each kind asked for, float32, shape [n, 2048]; see `tones`."""
    generator = np.random.default_rng(seed)
    count = len(labels)
    start_hz = generator.uniform(300, 700, (count, 1))
    phase = generator.uniform(0, 2 * np.pi, (count, 1))
    loudness = _LOUDNESS * generator.uniform(0.6, 1.4, (count, 1))
    pulses_hz = generator.uniform(8, 16, (count, 1))
    noise = generator.normal(size=(count, SAMPLES))
    through = np.linspace(0.0, 1.0, SAMPLES, endpoint=False)
    kind = labels[:, None]
    # An octave up from the start, or down to it.
    octaves = np.select([kind == 1, kind == 2], [through, 1 - through], 0.0)
    turns = np.cumsum(start_hz * 2.0**octaves, axis=1) / RATE_HZ
    tone = np.sin(2 * np.pi * turns + phase)
    pulses = np.sin(2 * np.pi * pulses_hz * through * SAMPLES / RATE_HZ + phase) > 0
    tone = np.select([kind == 3, kind == 4], [tone * pulses, noise / 2], tone)
    return np.clip(loudness * tone + _NOISE * noise, -1, 1).astype(np.float32)
