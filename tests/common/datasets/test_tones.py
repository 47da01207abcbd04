"""Tests of made-up sounds: that their kinds can be told apart by how they are made."""

import numpy as np
import torch

from lepton_common.datasets.records import check
from lepton_common.datasets.tones import KINDS, RATE_HZ, SAMPLES, tones


def _pitches_hz(parts):
    """The loudest frequency of each of some equal parts of each sound, and how much it has."""
    spectra = np.abs(np.fft.rfft(parts * np.hanning(parts.shape[-1]))) ** 2
    loudest = spectra.argmax(-1)
    around = sum(
        np.take_along_axis(
            spectra, np.clip(loudest + step, 0, spectra.shape[-1] - 1)[..., None], -1
        )[..., 0]
        for step in (-1, 0, 1)
    )
    return loudest * RATE_HZ / parts.shape[-1], around / spectra.sum(-1)


def test_every_sound_is_told_by_its_pitch_and_loudness():
    data = tones(None, "public_ranges")
    for part in (check(data.train, data), check(data.test, data)):
        sounds = part.features.double().numpy()
        pitches, shares = _pitches_hz(sounds.reshape(len(part), 4, -1))
        through = (sounds.reshape(len(part), 64, -1) ** 2).mean(-1)
        hiss = shares.max(1) < 0.25
        pulsing = np.quantile(through, 0.25, axis=1) < np.quantile(through, 0.75, axis=1) / 4
        slope = pitches[:, 3] / pitches[:, 0].clip(1)
        named = np.select([hiss, pulsing, slope > 1.3, slope < 1 / 1.3], [4, 3, 1, 2], 0)
        assert (named == part.labels.numpy()).mean() > 0.98, [
            (KINDS[kind], KINDS[name])
            for kind, name in zip(part.labels, named, strict=True)
            if kind != name
        ]


def test_sounds_are_the_same_each_time_and_all_different():
    first, again = tones(None, "public_ranges"), tones("anywhere", "public_ranges")
    assert torch.equal(first.train.features, again.train.features)
    assert first.input_shape == (SAMPLES,)
    assert len(set(map(bytes, first.train.features.numpy()))) == len(first.train)
    assert np.bincount(first.train.labels).tolist() == [100] * len(KINDS)
