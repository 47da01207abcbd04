"""Tests of the bound for dithered, Skellam-noised vectors against exact divergences, and its size.

With a dither the two neighbours are mixtures over u of shifted Skellam laws. In one and two
dimensions the divergence of the mixtures is a finite sum, taken here from the probabilities.
"""

import math
from itertools import product

import numpy as np
import pytest
from scipy import special, stats

from lepton_common.errors import PlanError
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import RoundedSkellam, SampledGaussian, merge, read_event
from lepton_common.privacy.skellam import rounded_skellam_divergence, skellam_divergence

_ORDERS = np.array([2.0, 3.0, 5.0, 16.0])


def _rounded(value):
    """Returns the values of floor(value + u) with their probabilities."""
    low = math.floor(value)
    return [(low, 1 - (value - low)), (low + 1, value - low)]


def _law(values, variance, reach):
    """Returns the probabilities of a rounded and noised vector on a square of integers."""
    k = np.arange(-reach, reach + 1)
    lines = []
    for value in values:
        lines.append(sum(p * stats.skellam.pmf(k - at, variance / 2, variance / 2)
                         for at, p in _rounded(value)))  # fmt: skip
    out = lines[0]
    for line in lines[1:]:
        out = np.multiply.outer(out, line)
    return np.log(np.maximum(out.ravel(), 1e-320))


def _divergence(numerator, denominator, order):
    return special.logsumexp(order * numerator + (1 - order) * denominator) / (order - 1)


@pytest.mark.parametrize("variance", [2.0, 9.0])
@pytest.mark.parametrize("start", [0.0, 0.3, 0.5, 0.95])
@pytest.mark.parametrize("change", [(0.4,), (1.0,), (1.7,), (-2.5,), (0.3, 0.4), (1.2, -0.9)])
def test_no_exact_divergence_exceeds_the_bound(variance, start, change):
    without = _law([start] * len(change), variance, 40)
    with_ = _law([start + one for one in change], variance, 40)
    norm = math.sqrt(sum(one * one for one in change))
    bounds = rounded_skellam_divergence(norm, len(change), variance, _ORDERS)
    for order, bound in zip(_ORDERS, bounds, strict=True):
        if order <= variance:  # the tails beyond 40 count at higher ones
            assert _divergence(with_, without, order) <= bound
            assert _divergence(without, with_, order) <= bound


@pytest.mark.parametrize("dimension", [1, 5])
def test_the_mean_over_the_dither_is_what_the_bound_starts_from(dimension):
    rng = np.random.default_rng(dimension)
    change, variance, order = rng.normal(size=dimension), 50.0, 4.0
    tilt = order * (order - 1) / (2 * variance)
    mean = 0.0
    for chosen in product(*(_rounded(one) for one in change)):
        weight = math.prod(p for _, p in chosen)
        mean += weight * math.exp(tilt * sum(at * at for at, _ in chosen))
    exact = math.log(mean) / (order - 1)
    norm = float(np.linalg.norm(change))
    largest = norm + math.sqrt(dimension)
    rest = skellam_divergence(largest, 1e9, variance, np.array([order]))[0]
    rest -= order * largest**2 / (2 * variance)
    bound = rounded_skellam_divergence(norm, dimension, variance, np.array([order]))[0] - rest
    assert exact <= bound <= 3 * exact + 0.1


def test_rounding_to_a_fine_grid_costs_next_to_nothing_and_less_than_the_worst_case():
    sharp, dimension, variance = 3000.0, 26_000, 4 * 2.0**28
    orders = np.array([2.0, 8.0, 64.0])
    gaussian = orders * sharp**2 / (2 * variance)
    ours = rounded_skellam_divergence(sharp, dimension, variance, orders)
    worst = orders * (sharp + math.sqrt(dimension)) ** 2 / (2 * variance)
    assert np.all(ours < 1.002 * gaussian)
    assert np.all(worst > 1.1 * gaussian)


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_epsilon_is_that_of_the_gaussian_up_to_the_grid(rate):
    # By the same accountant: sampled Gaussian steps, whose grid is infinitely fine.
    sigma, steps = 4.0, 60
    gaussian = epsilon((SampledGaussian(rate, sigma, steps),), 1e-5)
    event = RoundedSkellam(rate, math.sqrt(4 * 2.0**28) / sigma, 7850, 4 * 2.0**28, steps)
    found = epsilon((event,), 1e-5)
    assert gaussian <= found <= 1.15 * gaussian  # by Rényi divergences alone


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        ({"dimension": 10**6}, {"dimension": 10}),
        ({"l2_sensitivity": 500.0}, {"l2_sensitivity": 100.0}),
        ({"variance": 2.0**18}, {"variance": 2.0**20}),
        ({"sample_rate": 0.5}, {"sample_rate": 0.1}),
        ({"steps": 20}, {"steps": 10}),
    ],
)
def test_more_of_anything_but_noise_costs_more(worse, better):
    base = {"sample_rate": 0.2, "l2_sensitivity": 200.0, "dimension": 1000,
            "variance": 2.0**19, "steps": 15}  # fmt: skip
    costs = [epsilon((RoundedSkellam(**{**base, **change}),), 1e-5) for change in (worse, better)]
    assert costs[0] > costs[1]


def test_it_is_read_back_from_what_it_was_written_as():
    event = RoundedSkellam(0.1, 250.5, 7850, 2.0**28, 3)
    assert read_event(event.record()) == event
    assert merge([event, event])[0].steps == 6
    with pytest.raises(PlanError, match="dimension"):
        read_event({**event.record(), "dimension": 7850.5})
    with pytest.raises(PlanError, match="dimension"):
        read_event({**event.record(), "dimension": 0})
