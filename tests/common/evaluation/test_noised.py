"""Figures of noised sums: right to within the error that they are told with, or not told."""

import numpy as np
import pytest

from lepton_common.evaluation.noised import noised_figures
from lepton_common.evaluation.statistics import ClassStatistics, RegressionStatistics


def problem(kind, count=400):
    rng = np.random.default_rng(5)
    if isinstance(kind, RegressionStatistics):
        labels = rng.uniform(0.0, 10.0, count)
        return kind.of(labels + rng.normal(size=count), labels)
    labels = rng.integers(0, 2, count)
    return kind.of(rng.normal(2.0 * labels - 1.0, 1.5), labels)


@pytest.mark.parametrize("kind", [ClassStatistics(2, score_bins=10), RegressionStatistics(0, 10)])
def test_what_is_told_is_off_by_its_error(kind):
    exact = problem(kind)
    truth, random, off = kind.metrics(exact), np.random.default_rng(1), {}
    for _ in range(12):
        people, figures = noised_figures(kind, exact + random.normal(0, 3.0, kind.length), 3.0)
        off.setdefault("people", []).append((people["value"] - 400) / people["error"])
        for name, figure in figures.items():
            off.setdefault(name, []).append((figure["value"] - truth[name]) / figure["error"])
    assert set(off) == {"people", *truth}
    for name, errors in off.items():
        # 12 draws of about a normal one; a figure that noise only makes worse is off to one side.
        assert np.sqrt(np.mean(np.square(errors))) < 1.6, name
        assert np.abs(errors).max() < 4.0, name
        assert np.abs(errors).max() > 0.4, name  # nor is it told to be worse than it is


def test_what_the_noise_drowns_is_not_told():
    kind = ClassStatistics(2, score_bins=20)
    people, figures = noised_figures(kind, problem(kind, 20), 30.0)
    assert people["error"] > 20
    assert set(figures.values()) == {None}
    below = -10.0 * np.ones(kind.length)  # as noise may make of nobody at all
    people, figures = noised_figures(kind, below, 10.0)
    assert people["value"] == 0.0
    assert not figures


def test_without_noise_there_is_no_error():
    kind = ClassStatistics(2)
    people, figures = noised_figures(kind, problem(kind), 0.0)
    assert people == {"value": pytest.approx(400), "error": 0.0}
    found = {name: figure["value"] for name, figure in figures.items()}
    assert found == kind.metrics(problem(kind))
    assert {figure["error"] for figure in figures.values()} == {0.0}
