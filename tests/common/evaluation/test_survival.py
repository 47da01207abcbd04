"""Tests of survival statistics: Harrell's C against loops over all pairs, and its binned form."""

import math

import numpy as np
import pytest
import torch

from lepton_common.errors import DataInvalid
from lepton_common.evaluation.statistics import SurvivalStatistics, all_metrics, hazard_risks
from lepton_common.evaluation.survival import concordance


def _by_pairs(times, events, risks):
    """Returns Harrell's C as its definition reads, pair by pair."""
    pairs, concordant = 0, 0.0
    for i in range(len(times)):
        for j in range(i + 1, len(times)):
            if times[i] == times[j]:
                if events[i] == events[j]:
                    continue
                first, second = (i, j) if events[i] else (j, i)
            else:
                first, second = (i, j) if times[i] < times[j] else (j, i)
                if not events[first]:
                    continue
            pairs += 1
            if risks[first] > risks[second]:
                concordant += 1
            elif risks[first] == risks[second]:
                concordant += 0.5
    return concordant / pairs if pairs else None


def _problem(n, seed=0):
    rng = np.random.default_rng(seed)
    risks = rng.normal(size=n)
    event, censored = rng.exponential(5 * np.exp(-risks)), rng.exponential(8.0, n)
    return risks, np.stack([np.minimum(event, censored), event <= censored], 1).astype(float)


@pytest.mark.parametrize("seed", range(30))
def test_the_c_index_is_that_of_all_pairs_with_ties_of_every_kind(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    times = rng.integers(0, 12, n).astype(float)
    events, risks = rng.random(n) < 0.6, rng.integers(-3, 4, n).astype(float)
    found, expected = concordance(times, events, risks), _by_pairs(times, events, risks)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_records_beyond_one_block_of_events_are_all_compared():
    risks, labels = _problem(900)
    assert labels[:, 1].sum() > 512
    expected = _by_pairs(labels[:, 0], labels[:, 1] == 1, risks)
    found = all_metrics(SurvivalStatistics(30.0), risks, labels)
    assert found == {"c_index": pytest.approx(expected, abs=1e-12)}


@pytest.mark.parametrize("n", [200, 2000])
def test_the_binned_c_index_is_near_the_exact_one(n):
    risks, labels = _problem(n)
    statistics = SurvivalStatistics(horizon=20.0)
    binned = statistics.metrics(statistics.of(torch.from_numpy(risks)[:, None], labels))
    exact = statistics.exact(risks, labels)
    assert 0.6 < exact["c_index"] < 0.9
    assert binned["c_index"] == pytest.approx(exact["c_index"], abs=0.004)


def test_of_times_and_risks_that_are_their_bins_the_c_index_is_exact():
    rng = np.random.default_rng(5)
    times = rng.permutation(40) + 0.5  # each in a bin of its own
    events, risks = (rng.random(40) < 0.6).astype(float), rng.integers(-3, 4, 40).astype(float)
    statistics = SurvivalStatistics(horizon=40.0, time_bins=40)
    labels = np.stack([times, events], 1)
    binned = statistics.metrics(statistics.of(risks, labels))
    assert binned["c_index"] == pytest.approx(_by_pairs(times, events == 1, risks), abs=1e-12)


def test_statistics_add_up_over_sites_and_pairs_of_two_sites_count():
    risks, labels = _problem(300)
    statistics = SurvivalStatistics(20.0)
    first, second = labels[:, 0] < 2.0, labels[:, 0] >= 2.0
    parts = [statistics.of(risks[rows], labels[rows]) for rows in (first, second)]
    assert np.array_equal(sum(parts), statistics.of(risks, labels))


def test_what_happens_after_the_horizon_has_not_happened_by_then():
    statistics = SurvivalStatistics(10.0)
    late = statistics.of(np.zeros(2), np.array([[12.0, 1.0], [99.0, 0.0]]))
    censored = statistics.of(np.zeros(2), np.array([[10.0, 0.0], [10.0, 0.0]]))
    assert np.array_equal(late, censored)


def test_the_risk_of_hazards_orders_by_expected_survival():
    logits = torch.tensor([[-3.0, -3.0], [0.0, -3.0], [-3.0, 0.0], [40.0, 40.0], [-60.0, -60.0]])
    risks = hazard_risks(logits)
    assert list(np.argsort(risks)) == [4, 0, 2, 1, 3]
    survived = (0.5 + 0.5 / (1 + math.exp(-3.0))) / 2
    assert risks[1] == pytest.approx(math.log((1 - survived) / survived))
    assert np.isfinite(risks).all()


def test_noise_is_no_bias_and_the_index_stays_in_bounds():
    risks, labels = _problem(1500)
    statistics = SurvivalStatistics(20.0, time_bins=20, risk_bins=20)
    vector = statistics.of(risks, labels)
    true = statistics.metrics(vector)["c_index"]
    rng = np.random.default_rng(2)
    found = [
        statistics.metrics(vector + 2 * rng.normal(size=len(vector)))["c_index"] for _ in range(100)
    ]
    assert abs(np.mean(found) - true) < 4 * np.std(found) / 10 + 1e-3
    pure = [statistics.metrics(1e4 * rng.normal(size=len(vector))) for _ in range(50)]
    assert all(0.0 <= value <= 1.0 for each in pure for value in each.values())
    assert statistics.metrics(np.zeros(len(vector))) == {}


def test_other_labels_are_refused():
    statistics = SurvivalStatistics(10.0)
    for wrong in ([-1.0, 1.0], [1.0, 0.5], [math.nan, 1.0]):
        with pytest.raises(DataInvalid):
            statistics.of(np.zeros(1), np.array([wrong]))
