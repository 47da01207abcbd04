"""Tests of anomaly statistics: ordering by reconstruction error, over many powers of ten."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from lepton_common.errors import ModelMismatch
from lepton_common.evaluation.statistics import (
    AnomalyStatistics,
    all_metrics,
    reconstruction_errors,
)


def _problem(size=1.0, n=4000):
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.1).astype(np.int64)
    return size * np.exp(rng.normal(size=n) + 1.5 * labels), labels


@pytest.mark.parametrize("size", [0.001, 0.1, 10.0])
def test_areas_from_bins_are_near_scikit_learn_whatever_the_size(size):
    scores, labels = _problem(size)
    statistics = AnomalyStatistics()
    expected = {
        "roc_auc": sk.roc_auc_score(labels, scores),
        "pr_auc": sk.average_precision_score(labels, scores),
        "anomaly_share": labels.mean(),
    }
    assert 0.3 < expected["pr_auc"] < 0.9
    assert statistics.metrics(statistics.of(scores, labels)) == pytest.approx(expected, abs=2e-3)
    assert all_metrics(statistics, scores, labels) == pytest.approx(expected, rel=1e-9)


def test_reconstruction_errors_are_mean_squares():
    features = torch.randn(5, 1, 3, 4, generator=torch.Generator().manual_seed(0))
    made = features.flatten(1) + torch.arange(5.0)[:, None]
    assert reconstruction_errors(made, features) == pytest.approx(np.arange(5.0) ** 2, abs=1e-5)
    with pytest.raises(ModelMismatch, match="Reconstructions"):
        reconstruction_errors(made[:, :3], features)


def test_scores_of_nothing_or_no_number_have_a_place():
    statistics = AnomalyStatistics(bins=10)
    vector = statistics.of(np.array([0.0, math.nan, math.inf]), np.array([0, 1, 1]))
    assert statistics.metrics(vector)["roc_auc"] == 1.0
    assert statistics.exact(np.array([0.0, math.nan]), np.array([0, 1]))["roc_auc"] == 1.0
    assert vector[0] == 1.0
    assert vector[-1] == 2.0


def test_noise_is_no_bias_in_the_area_and_metrics_stay_in_bounds():
    scores, labels = _problem()
    statistics = AnomalyStatistics(bins=50)
    vector, exact = statistics.of(scores, labels), all_metrics(statistics, scores, labels)
    rng = np.random.default_rng(1)
    trials = [statistics.metrics(vector + rng.normal(size=100) * 3) for _ in range(100)]
    assert all(0.0 <= value <= 1.0 for found in trials for value in found.values())
    spread = np.std([found["roc_auc"] for found in trials])
    mean = np.mean([found["roc_auc"] for found in trials])
    assert abs(mean - exact["roc_auc"]) < 4 * spread / 10 + 1e-3
    assert statistics.metrics(np.zeros(100)) == {}
    pure = [statistics.metrics(rng.normal(size=100) * 1e4) for _ in range(50)]
    assert all(0.0 <= value <= 1.0 for found in pure for value in found.values())
