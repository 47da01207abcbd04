"""A search for records that add more than a kind of statistics says, and for some near it."""

import numpy as np
import pytest

from lepton_common.evaluation.statistics import (
    AnomalyStatistics,
    ClassStatistics,
    RegressionStatistics,
    SurvivalStatistics,
    TokenStatistics,
)

_SIZES = (0.0, 0.1, 1.0, 5.0, 50.0, 1e6, 1e30)
_ODD = (np.nan, np.inf, -np.inf)


def _logits(rng, *shape):
    values = rng.choice(_SIZES) * rng.normal(size=shape)
    if rng.random() < 0.2:
        values[..., rng.integers(shape[-1])] = rng.choice(_ODD)
    if rng.random() < 0.2:
        values = np.zeros(shape)  # as unsure as can be
    return values


def _class_record(statistics, rng):
    return _logits(rng, 1, statistics.classes), rng.integers(0, statistics.classes, 1)


def _token_record(statistics, rng):
    shape = (1, statistics.positions)
    right = rng.integers(0, statistics.vocabulary, shape)
    logits = _logits(rng, *shape, statistics.vocabulary)
    if rng.random() < 0.5:  # all of them barely right
        logits = np.zeros((*shape, statistics.vocabulary))
        right = np.zeros(shape, int)
    return logits, right


def _regression_record(statistics, rng):
    ends = [statistics.low, statistics.high, 0.0, *rng.uniform(statistics.low, statistics.high, 2)]
    return np.array([rng.choice([*ends, *_ODD, 1e30])]), np.array([rng.choice([*ends, 1e30])])


def _anomaly_record(statistics, rng):
    return np.array([rng.choice([*_SIZES, *_ODD])]), rng.integers(0, 2, 1)


def _survival_record(statistics, rng):
    return np.array([rng.choice([*_SIZES, *_ODD])]), np.array([[rng.choice(_SIZES), 1.0]])


_KINDS = [
    (ClassStatistics(2), _class_record),
    (ClassStatistics(2, loss_cap=0.5), _class_record),
    (ClassStatistics(6, loss_cap=2.0), _class_record),
    (ClassStatistics(40, score_bins=0), _class_record),
    (ClassStatistics(10, score_bins=20), _class_record),
    (RegressionStatistics(-1.0, 1.0), _regression_record),
    (RegressionStatistics(0.0, 300.0), _regression_record),
    (RegressionStatistics(-5.0, 1.0, floor=1e-9, relative_cap=0.1), _regression_record),
    (TokenStatistics(50, 1), _token_record),
    (TokenStatistics(50, 8, loss_cap=1.0), _token_record),
    (AnomalyStatistics(), _anomaly_record),
    (SurvivalStatistics(5.0), _survival_record),
]


@pytest.mark.parametrize(("statistics", "record"), _KINDS, ids=[repr(kind) for kind, _ in _KINDS])
def test_no_record_adds_more_than_the_bound_and_some_nearly_as_much(statistics, record):
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        norms = [float(np.linalg.norm(statistics.of(*record(statistics, rng)))) for _ in range(400)]
    assert np.isfinite(norms).all()
    assert max(norms) <= statistics.per_record_bound * (1 + 1e-12)
    assert max(norms) >= 0.9 * statistics.per_record_bound
