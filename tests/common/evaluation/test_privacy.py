"""Tests of noised sums: what one person can change, what is charged, and what remains."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepton_common.errors import DataInvalid, PlanError
from lepton_common.evaluation import privacy
from lepton_common.evaluation.privacy import noised_sum
from lepton_common.evaluation.statistics import AnomalyStatistics, ClassStatistics
from lepton_common.privacy.events import SampledGaussian
from lepton_common.privacy.noise import SecretRandom


@given(st.integers(0, 10**6), st.sampled_from([0.5, 7.0, 300.0, 20000.0]))
def test_no_unit_is_more_than_its_bound_on_the_grid(seed, clipping):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=int(rng.integers(1, 300))) * 10 ** rng.uniform(-3, 6)
    rounded = privacy._on_grid(values, clipping, clipping + 4.0, SecretRandom())
    assert rounded.dtype == np.int64
    assert math.sqrt(int(rounded @ rounded)) <= clipping + 4.0


def test_rounding_is_no_bias_and_leaves_whole_numbers_alone():
    random = SecretRandom()
    values = np.array([0.25, 17.0, -3.5, 0.0])
    drawn = [privacy._on_grid(values, 100.0, 104.0, random) for _ in range(4000)]
    assert np.mean(drawn, axis=0) == pytest.approx(values, abs=0.05)
    assert {int(row[1]) for row in drawn} == {17}


def _sum(outputs, labels, units, clipping_norm=1.0, noise_multiplier=0.05, bins=200):
    statistics = AnomalyStatistics(bins=bins)
    return noised_sum(statistics, outputs, labels, units, clipping_norm, noise_multiplier)


def test_a_person_of_many_records_counts_as_much_as_the_bound():
    scores, labels = np.full(100, 0.1), np.zeros(100, np.int64)
    together = _sum(scores, labels, np.full(100, 7))
    apart = _sum(scores, labels, None)
    assert together.vector[100] == pytest.approx(1.0, abs=0.4)
    assert apart.vector[100] == pytest.approx(100.0, abs=0.4)
    pairs = _sum(scores, labels, np.arange(100) // 2, clipping_norm=0.5)
    assert pairs.vector[100] == pytest.approx(25.0, abs=0.4)


def test_noise_has_the_stated_deviation_and_the_event_says_what_was_done():
    statistics = AnomalyStatistics(bins=2000)
    empty = np.zeros(0), np.zeros(0, np.int64)
    for clipping_norm, noise_multiplier in ((1.0, 1.0), (3.0, 0.7), (0.01, 5.0)):
        found = noised_sum(statistics, *empty, None, clipping_norm, noise_multiplier)
        stated = found.standard_deviation
        assert stated == pytest.approx(clipping_norm * noise_multiplier, rel=1e-3)
        assert stated >= clipping_norm * noise_multiplier
        assert np.std(found.vector) == pytest.approx(stated, rel=0.08)
        assert abs(np.mean(found.vector)) < 5 * stated / math.sqrt(4000)
        assert found.event == SampledGaussian(1.0, noise_multiplier, 1)


def test_sums_and_noise_lie_on_a_grid_that_holds_whole_counts():
    found = _sum(np.full(9, 0.1), np.zeros(9, np.int64), None, noise_multiplier=1.0)
    steps = found.vector * 2.0**20
    assert np.array_equal(steps, np.rint(steps))
    assert len(np.unique(steps % 1024)) > 100  # and it is no coarser


def test_metrics_of_a_noised_sum_are_near_the_true_ones():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 2, (600,), generator=generator)
    logits = torch.randn(600, generator=generator) + 2.0 * labels - 1.0
    statistics = ClassStatistics(2, score_bins=20)
    true = statistics.metrics(statistics.of(logits, labels))
    norm = statistics.per_record_bound
    found = statistics.metrics(noised_sum(statistics, logits, labels, None, norm, 0.5).vector)
    assert set(found) == set(true)
    for name in ("accuracy", "f1_macro", "roc_auc"):
        assert found[name] == pytest.approx(true[name], abs=0.15)


def test_bounds_without_a_guarantee_are_refused():
    for norm, noise in ((1.0, 0.0), (1.0, 0.01), (0.0, 1.0), (math.inf, 1.0), (1.0, math.nan)):
        with pytest.raises(PlanError, match="evaluation lies in"):
            _sum(np.zeros(1), np.zeros(1, np.int64), None, norm, noise)


def test_records_without_a_unit_are_refused_not_left_out():
    with pytest.raises(DataInvalid, match="privacy unit"):
        _sum(np.ones(3), np.zeros(3, np.int64), np.arange(2))
