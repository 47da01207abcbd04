"""Tests of what may be done to records: labels stay, seeds decide, records stay apart."""

import numpy as np
import pytest
import torch

from lepton_common.datasets.tones import KINDS, made_up_sounds
from lepton_common.tasks.augmentation import (
    AsTheyAre,
    OfImages,
    OfSeries,
    OfSounds,
    OfTexts,
    Seeded,
    mix,
)

_CASES = [
    (AsTheyAre(), (5,)),
    (OfImages(shift=2, mirror=True, cutout=3), (3, 9, 8)),
    (OfSeries(jitter=0.1, warp=0.2), (20, 3)),
    (OfSounds(times=0.2, bands=0.2), (256,)),
    (OfTexts(dropout=0.3), (30,)),
]


def _batch(shape, count=4):
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(1)) + 1


@pytest.mark.parametrize(("augmentation", "shape"), _CASES)
def test_views_stand_together_and_a_seed_decides_them(augmentation, shape):
    batch = _batch(shape)
    before = batch.clone()
    views = augmentation.views(batch, 3, Seeded(7))
    assert views.shape == (12, *shape)
    assert views.dtype == torch.float32
    assert torch.equal(views, augmentation.views(batch, 3, Seeded(7)))
    assert torch.equal(batch, before)
    if not isinstance(augmentation, AsTheyAre):
        assert not torch.equal(views, augmentation.views(batch, 3, Seeded(8)))
        assert not torch.equal(views[0], views[1])


@pytest.mark.parametrize(("augmentation", "shape"), _CASES)
def test_a_records_views_depend_on_it_alone(augmentation, shape):
    batch = _batch(shape)
    changed = batch.clone()
    changed[2] = 100 * torch.rand(shape)
    views = augmentation.views(batch, 3, Seeded(7)).split(3)
    others = augmentation.views(changed, 3, Seeded(7)).split(3)
    assert [torch.equal(*pair) for pair in zip(views, others, strict=True)] == [
        True, True, False, True,
    ]  # fmt: skip


@pytest.mark.parametrize(("augmentation", "shape"), _CASES)
def test_the_global_generator_is_left_alone(augmentation, shape):
    state = torch.get_rng_state()
    augmentation.views(_batch(shape), 2, Seeded(1))
    assert torch.equal(state, torch.get_rng_state())


def test_a_square_is_greyed_out_wholly_inside_and_anywhere():
    views = OfImages(cutout=3).views(_batch((2, 6, 7), 1), 300, Seeded(0))
    holes = views == 0
    assert (holes.sum((1, 2, 3)) == 2 * 9).all()
    assert torch.equal(holes[:, 0], holes[:, 1])
    assert (holes.any(0).sum()) == 2 * 6 * 7


def test_time_is_warped_in_order_and_ends_stay():
    # Of a series that counts its own steps, a view says which moment stands at each.
    steps = torch.linspace(0, 1, 50).view(1, 50, 1)
    views = OfSeries(warp=0.3).views(steps, 100, Seeded(0)).squeeze(2)
    assert (views.diff(dim=1) >= 0).all()
    assert torch.allclose(views[:, 0], torch.zeros(100))
    assert torch.allclose(views[:, -1], torch.ones(100))
    away = (views - steps.view(1, 50)).abs().amax(1)
    assert 0.25 < float(away.max()) < 0.31
    assert float(away.min()) < 0.05


def test_jitter_has_the_deviation_asked_for():
    noise = OfSeries(jitter=0.5).views(torch.zeros(1, 100, 3), 100, Seeded(0))
    assert float(noise.std()) == pytest.approx(0.5, rel=0.02)
    assert abs(float(noise.mean())) < 0.01


def test_a_piece_of_a_sound_is_silent_or_a_band_of_it_gone():
    sounds = torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    silent = OfSounds(times=0.25).views(sounds, 5, Seeded(0))
    assert ((silent == 0).sum(1) == 64).all()
    without = OfSounds(bands=0.25).views(sounds, 5, Seeded(0))
    gone = torch.fft.rfft(without).abs() < 1e-3
    assert (gone.sum(1) >= 32).all()
    assert (gone.sum(1) <= 34).all()


def test_a_steady_tone_is_not_taken_for_a_rising_one():
    sounds = torch.from_numpy(made_up_sounds(np.repeat([0, 1], 20), seed=1))
    views = OfSounds(times=0.1, bands=0.02).views(sounds, 4, Seeded(0))
    ends = [part.reshape(160, 512) for part in (views[:, :512], views[:, -512:])]
    loudest = [torch.fft.rfft(part * torch.hann_window(512)).abs().argmax(1) for part in ends]
    rising = (loudest[1] > 1.3 * loudest[0]).reshape(2, 80).float().mean(1)
    assert (rising[0] < 0.1, rising[1] > 0.85) == (True, True), (KINDS[:2], rising)


def test_tokens_are_dropped_and_never_changed():
    tokens = torch.arange(1, 101).float().repeat(1, 1)
    views = OfTexts(dropout=0.3).views(tokens, 200, Seeded(0))
    assert ((views == 0) | (views == tokens)).all()
    assert float((views == 0).float().mean()) == pytest.approx(0.3, abs=0.01)


def test_a_mixture_is_what_a_hand_computes():
    records = _batch((3, 2), 5)
    mixed = mix(records, 0.4, np.random.default_rng(3))
    again = np.random.default_rng(3)
    shares, partners = again.beta(0.4, 0.4, 5).astype(np.float32), again.permutation(5)
    assert partners.tolist() == mixed.partners.tolist()
    assert mixed.shares.tolist() == shares.tolist()
    for row in range(5):
        expected = shares[row] * records[row] + (1 - shares[row]) * records[partners[row]]
        torch.testing.assert_close(mixed.features[row], expected)
    other = mix(records, 0.4, np.random.default_rng(4))
    assert not torch.equal(other.features, mixed.features)


def test_the_smaller_alpha_the_less_is_mixed():
    shares = [mix(_batch((1,), 2000), alpha, np.random.default_rng(1)).shares for alpha in (0.1, 1)]
    # The variance of Beta(a, a) is 1 / (8 a + 4).
    assert [float(each.var()) for each in shares] == pytest.approx([1 / 4.8, 1 / 12], rel=0.05)
