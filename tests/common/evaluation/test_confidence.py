"""Tests of intervals over seeds against SciPy, and of the spread of a metric over sites."""

import numpy as np
import pytest
from scipy import stats

from lepton_common.errors import SettingsError
from lepton_common.evaluation.confidence import over_seeds, over_sites


def test_the_interval_is_students():
    values = [0.81, 0.84, 0.79]
    found = over_seeds(values, 0.9)
    low, high = stats.t.interval(0.9, 2, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert (found.count, found.mean) == (3, pytest.approx(0.8133333))
    assert found.sd == pytest.approx(np.std(values, ddof=1))


def test_the_interval_holds_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(800):
        found = over_seeds(list(rng.normal(3.0, 2.0, 3)))
        held += found.low <= 3.0 <= found.high
    assert held / 800 == pytest.approx(0.95, abs=0.03)


def test_one_run_has_no_spread_and_none_is_refused():
    found = over_seeds([0.5])
    assert (found.mean, found.sd, found.low, found.high) == (0.5, None, None, None)
    for wrong in ([], [0.5, float("nan")]):
        with pytest.raises(SettingsError, match="finite"):
            over_seeds(wrong)
    with pytest.raises(SettingsError, match="between 0 and 1"):
        over_seeds([0.5], 95)


def test_worst_and_best_go_by_what_is_better():
    values = {"north": 0.8, "south": 0.6, "east": 0.7}
    found = over_sites("accuracy", values)
    assert (found.worst_site, found.worst, found.best_site, found.best) == (
        "south", 0.6, "north", 0.8,
    )  # fmt: skip
    assert (found.spread, found.mean) == pytest.approx((0.2, 0.7))
    assert found.sd == pytest.approx(np.std(list(values.values())))
    error = over_sites("rmse", values)
    assert (error.worst_site, error.best_site, error.spread) == (
        "north",
        "south",
        pytest.approx(0.2),
    )
    with pytest.raises(SettingsError, match="one site"):
        over_sites("accuracy", {})


def test_the_worst_tenth_is_a_mean_of_the_worst_sites_where_there_are_many():
    values = {f"site-{n}": n / 100 for n in range(30)}
    assert over_sites("accuracy", values).worst_tenth == pytest.approx(0.01)
    assert over_sites("log_loss", values).worst_tenth == pytest.approx(0.28)
    assert over_sites("accuracy", dict(list(values.items())[:19])).worst_tenth is None
