"""Tests of regression statistics: they agree with scikit-learn within the public range."""

import math

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from lepton_common.errors import DataInvalid, SettingsError
from lepton_common.evaluation.statistics import RegressionStatistics, all_metrics

_STATISTICS = RegressionStatistics(10.0, 250.0)


def _problem(n=500):
    rng = np.random.default_rng(0)
    true = rng.uniform(20, 240, n)
    return np.clip(true + rng.normal(size=n) * 15, 10, 250), true


def test_metrics_agree_with_scikit_learn():
    predicted, true = _problem()
    found = all_metrics(_STATISTICS, torch.from_numpy(predicted)[:, None], torch.from_numpy(true))
    assert found == pytest.approx(
        {
            "rmse": sk.root_mean_squared_error(true, predicted),
            "mae": sk.mean_absolute_error(true, predicted),
            "mape": sk.mean_absolute_percentage_error(true, predicted),
            "r2": sk.r2_score(true, predicted),
        },
        rel=1e-9,
    )


def test_statistics_add_up():
    predicted, true = _problem()
    parts = [_STATISTICS.of(predicted[i::3], true[i::3]) for i in range(3)]
    assert np.allclose(sum(parts), _STATISTICS.of(predicted, true))


def test_what_lies_outside_of_the_public_range_is_brought_to_its_end():
    inside = _STATISTICS.of(np.array([250.0, 10.0]), np.array([100.0, 250.0]))
    outside = _STATISTICS.of(np.array([math.inf, -1e9]), np.array([100.0, 400.0]))
    assert np.array_equal(inside, outside)
    unknown = _STATISTICS.of(np.array([math.nan, math.nan]), np.array([240.0, 20.0]))
    assert np.array_equal(unknown, _STATISTICS.of(np.array([10.0, 250.0]), np.array([240.0, 20.0])))


def test_relative_errors_have_a_floor_and_a_cap():
    statistics = RegressionStatistics(-1.0, 1.0, floor=0.1, relative_cap=2.0)
    found = all_metrics(statistics, np.array([0.1, 0.9]), np.array([0.0, 0.0]))
    assert found["mape"] == pytest.approx((1.0 + 2.0) / 2)
    assert RegressionStatistics(0.0, 100.0).of(np.array([1.0]), np.array([0.0]))[5] == 0.1


def test_the_mean_as_prediction_explains_nothing_and_equal_labels_have_no_r2():
    _, true = _problem()
    found = all_metrics(_STATISTICS, np.full_like(true, true.mean()), true)
    assert found["r2"] == pytest.approx(0.0, abs=1e-9)
    equal = all_metrics(_STATISTICS, np.array([20.0, 30.0]), np.array([25.0, 25.0]))
    assert set(equal) == {"rmse", "mae", "mape"}


def test_noised_sums_give_finite_metrics():
    predicted, true = _problem()
    vector, exact = _STATISTICS.of(predicted, true), all_metrics(_STATISTICS, predicted, true)
    rng = np.random.default_rng(2)
    near = _STATISTICS.metrics(vector + rng.normal(size=6) * 0.1)
    assert near == pytest.approx(exact, rel=0.1)
    for scale in (1.0, 1e3, 1e9):
        for _ in range(50):
            found = _STATISTICS.metrics(rng.normal(size=6) * scale)
            assert all(map(math.isfinite, found.values()))
            assert found.get("rmse", 0.0) <= 240.0
    assert _STATISTICS.metrics(np.zeros(6)) == {}


def test_other_forms_are_refused_by_name():
    with pytest.raises(DataInvalid, match="finite"):
        _STATISTICS.of(np.zeros(2), np.array([20.0, math.nan]))
    for wrong in ((1.0, 1.0), (0.0, math.inf)):
        with pytest.raises(SettingsError, match="public range"):
            RegressionStatistics(*wrong)
