"""Tests of adaptive clipping: the bound follows the quantile that was asked for."""

import numpy as np
import pytest

from lepton_server.rounds.clip_scale import ClipScale


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("start", [0.01, 30.0])
def test_the_scale_comes_to_the_quantile_of_lengths(quantile, start):
    rng = np.random.default_rng(1)
    lengths = rng.lognormal(size=2000)
    scale = ClipScale(quantile)
    scale.value = start
    for _ in range(200):
        share = np.mean(lengths <= scale.value) + 0.02 * rng.standard_normal()
        scale.learn({"within_clip": float(share)})
    assert scale.value == pytest.approx(np.quantile(lengths, quantile), rel=0.15)


def test_noise_beyond_all_or_none_moves_no_further():
    for share, edge in ((7.0, 1.0), (-3.0, 0.0)):
        moved, expected = ClipScale(0.5), ClipScale(0.5)
        moved.learn({"within_clip": share})
        expected.learn({"within_clip": edge})
        assert moved.value == expected.value


def test_a_fixed_bound_stays():
    scale = ClipScale(None)
    scale.learn({})
    assert scale.value == 1.0
    assert scale.snapshot() == {}


def test_it_goes_on_after_a_restart_and_stays_within_what_sites_accept():
    scale = ClipScale(0.5)
    for _ in range(1000):
        scale.learn({"within_clip": 1.0})
    assert scale.value == 1e-6
    other = ClipScale(0.5)
    other.restore(scale.snapshot())
    assert other.value == scale.value
