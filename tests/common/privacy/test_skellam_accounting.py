"""Tests of the Skellam bounds against the exact divergences of the law, with and without sampling.

The exact ones are sums over the integers of the probabilities themselves, which come from Miller's
recurrence in logarithms and are held against mpmath's Bessel functions here.
"""

import math
from functools import cache
from itertools import pairwise

import mpmath
import numpy as np
import pytest
from scipy import special

from lepton_common.privacy.accounting import _between, _renyi_epsilon, epsilon
from lepton_common.privacy.events import SampledGaussian, Skellam
from lepton_common.privacy.skellam import ALL_ORDERS, ORDERS, poisson_sampled, skellam_divergence

_DELTA = 1e-5
_SOME = [2, 3, 4, 8, 16, 64]


def _log_law(variance, top):
    """Returns log P(k) for k = -top..top."""
    ratio = variance / (2 * (top + 100 + int(variance)))
    ratios = np.empty(top)
    for k in range(top + 99 + int(variance), 0, -1):
        ratio = variance / (2 * k + variance * ratio)
        if k <= top:
            ratios[k - 1] = ratio
    half = np.log(special.ive(0, variance)) + np.append(0.0, np.cumsum(np.log(ratios)))
    return np.concatenate([half[:0:-1], half])


def _without_and_with(variance, shift, order):
    """Returns log probabilities without and with a unit that shifts the sum, on a long range."""
    return _on_a_range(variance, shift, 16 if order <= 16 else 64)


@cache
def _on_a_range(variance, shift, most):
    top = int(1.5 * shift * most + 40 * math.sqrt(variance)) + 60
    law = _log_law(variance, top + shift)
    return law[shift:-shift], law[: -2 * shift]


def _divergence(numerator, denominator, order):
    return special.logsumexp(order * numerator + (1 - order) * denominator) / (order - 1)


def _both_ways(variance, shift, order, rate):
    without, with_ = _without_and_with(variance, shift, order)
    mixed = np.logaddexp(math.log1p(-rate) + without, math.log(rate) + with_)
    return _divergence(mixed, without, order), _divergence(without, mixed, order)


def _bound(variance, shift, order):
    return skellam_divergence(shift, shift, variance, np.array([float(order)]))[0]


@pytest.mark.parametrize("variance", [0.3, 1.0, 40.0])
def test_the_exact_law_is_that_of_the_bessel_functions(variance):
    law = _log_law(variance, 60)
    with mpmath.workdps(40):
        for k in (0, 1, 7, 60):
            exact = mpmath.log(mpmath.besseli(k, variance)) - variance
            assert law[60 + k] == law[60 - k] == pytest.approx(float(exact), rel=1e-12)
    # Its variance is the parameter: the parametrisation of the paper and of our sampler.
    assert np.exp(law) @ np.arange(-60, 61) ** 2 == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("variance", [0.01, 0.1, 0.5, 1.0, 4.0, 16.0, 100.0, 1024.0, 4096.0])
@pytest.mark.parametrize("shift", [1, 2, 3, 5, 20])
def test_the_bound_is_never_below_the_exact_divergence(variance, shift):
    for order in _SOME:
        without, with_ = _without_and_with(variance, shift, order)
        exact = _divergence(with_, without, order)
        assert exact == pytest.approx(_divergence(without, with_, order), rel=1e-9)
        assert _bound(variance, shift, order) > exact * (1 + 1e-6)


@pytest.mark.parametrize(
    ("variance", "shift", "order", "within"),
    [
        (4096.0, 1, 2, 6e-4),
        (4096.0, 10, 8, 5e-4),
        (4096.0, 20, 16, 6e-3),
        (100.0, 1, 2, 0.03),
        (16.0, 1, 2, 0.15),
    ],
)
def test_the_bound_is_close_where_the_noise_is_wide(variance, shift, order, within):
    without, with_ = _without_and_with(variance, shift, order)
    exact = _divergence(with_, without, order)
    assert _bound(variance, shift, order) <= exact * (1 + within)


def test_the_bound_of_a_vector_holds_for_its_coordinates_together():
    # Independent coordinates add, so the exact divergence of (3, -2, 2, 1, 1) is known.
    variance, moves = 30.0, (3, 2, 2, 1, 1)
    squares, absolute = math.sqrt(sum(m * m for m in moves)), sum(moves)
    for order in (2, 5, 12):
        exact = sum(_divergence(*_without_and_with(variance, m, order)[::-1], order) for m in moves)
        bound = skellam_divergence(squares, absolute, variance, np.array([float(order)]))[0]
        assert exact < bound < 1.2 * exact


def test_an_l1_sensitivity_beyond_what_integers_allow_changes_nothing():
    orders = np.array([2.0, 9.0])
    tight = skellam_divergence(5.0, 25.0, 80.0, orders)
    assert np.array_equal(skellam_divergence(5.0, 1e6, 80.0, orders), tight)
    assert np.all(skellam_divergence(5.0, 5.0, 80.0, orders) < tight)
    assert np.array_equal(
        skellam_divergence(9.0, 5.0, 80.0, orders), skellam_divergence(5.0, 5.0, 80.0, orders)
    )


# --- Poisson sampling ------------------------------------------------------------------------


def _exact_at_all_orders(variance, shift, most):
    """Returns exact unsampled divergences at orders to ``most``; above, a bound."""
    unsampled = skellam_divergence(shift, shift, variance, ALL_ORDERS)
    for order in range(2, most + 1):
        unsampled[order - 2] = _divergence(*_without_and_with(variance, shift, order)[::-1], order)
    return unsampled


_SAMPLED = [
    (variance, shift, rate)
    for variance, shift in ((1.0, 1), (4.0, 3), (25.0, 2), (400.0, 30))
    for rate in (0.001, 0.05, 0.3, 0.9)
]


@pytest.mark.parametrize(("variance", "shift", "rate"), _SAMPLED)
def test_the_sampled_bound_is_never_below_either_direction(variance, shift, rate):
    bound = poisson_sampled(skellam_divergence(shift, shift, variance, ALL_ORDERS), rate)
    for order in (2, 3, 5, 8, 16, 32):
        add, remove = _both_ways(variance, shift, order, rate)
        assert remove <= add * (1 + 1e-9)  # by reflection
        assert bound[order - 2] > add * (1 - 1e-9)


@pytest.mark.parametrize(("variance", "shift", "rate"), _SAMPLED)
def test_given_exact_divergences_the_sampled_ones_are_exact(variance, shift, rate):
    sampled = poisson_sampled(_exact_at_all_orders(variance, shift, 16), rate)
    for order in (2, 3, 8, 16):
        add, _ = _both_ways(variance, shift, order, rate)
        # The sum of the exact one lies near 1, where a float keeps 16 digits of the 1.
        assert sampled[order - 2] == pytest.approx(add, rel=1e-8, abs=1e-14)


def _general(divergence, rate, order):
    """Zhu and Wang 2019, Theorem 5, for mechanisms without symmetry, in exact arithmetic."""
    q = mpmath.mpf(rate)
    terms = [(1 - q) ** (order - 1) * (order * q - q + 1)]
    for k in range(2, order + 1):
        weight = mpmath.binomial(order, k) * (1 - q) ** (order - k) * q**k
        terms.append((1 if k == 2 else 3) * weight * mpmath.exp((k - 1) * divergence[k - 2]))
    return float(mpmath.log(mpmath.fsum(terms)) / (order - 1))


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.6])
def test_the_sampled_bound_is_at_most_the_general_one_and_equals_it_at_order_two(rate):
    divergence = skellam_divergence(6.0, 20.0, 100.0, ALL_ORDERS)
    sampled = poisson_sampled(divergence, rate)
    assert sampled[0] == pytest.approx(_general(divergence, rate, 2), rel=1e-9)
    for order in (3, 4, 10, 60):
        general = _general(divergence, rate, order)
        assert general / 3.01 < sampled[order - 2] < general


def test_sampling_at_tiny_rates_keeps_its_digits():
    # Order 2 costs log(1 + q² (e^d - 1)) exactly; q² is below the last digit of 1.
    divergence = skellam_divergence(10.0, 10.0, 100.0, ALL_ORDERS)
    expected = 1e-18 * math.expm1(divergence[0])
    assert poisson_sampled(divergence, 1e-9)[0] == pytest.approx(expected, rel=1e-9)


def test_a_rate_of_one_is_no_sampling_and_more_costs_more():
    divergence = skellam_divergence(10.0, 60.0, 1000.0, ALL_ORDERS)
    whole = poisson_sampled(divergence, 1.0)
    assert np.array_equal(whole, skellam_divergence(10.0, 60.0, 1000.0, ORDERS))
    rates = [poisson_sampled(divergence, rate) for rate in (0.01, 0.1, 0.5, 0.999999)]
    assert all(np.all(less < more) for less, more in pairwise([*rates, whole]))
    assert rates[-1] == pytest.approx(whole, rel=1e-3)


# --- as epsilon ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rate", "multiplier", "steps"), [(1.0, 3.0, 10), (0.05, 1.2, 200), (0.3, 4.0, 30)]
)
def test_on_a_fine_grid_it_costs_what_gaussian_noise_costs_by_divergences(rate, multiplier, steps):
    gaussian = _renyi_epsilon([SampledGaussian(rate, multiplier, steps)], _DELTA)
    clip = 2.0**14
    skellam = Skellam(rate, clip, 100 * clip, (multiplier * clip) ** 2, steps)
    spent = epsilon((skellam,), _DELTA)
    # Between integers only the chord is known: that costs the percent.
    assert gaussian * (1 - 1e-9) <= spent <= 1.015 * gaussian


def test_on_a_coarse_grid_it_costs_more():
    spent = [
        epsilon((Skellam(0.1, clip, clip**2, (2 * clip) ** 2, 50),), _DELTA)
        for clip in (1.0, 2.0, 8.0, 1024.0)
    ]
    assert all(coarse > fine for coarse, fine in pairwise(spent))
    assert spent[0] > 1.3 * spent[-1]


@pytest.mark.parametrize(("variance", "shift"), [(9.0, 1), (100.0, 5), (400.0, 30)])
def test_epsilon_covers_the_exact_curve_of_one_sum(variance, shift):
    spent = epsilon((Skellam(1.0, shift, shift, variance, 1),), _DELTA)
    without, with_ = (np.exp(law) for law in _without_and_with(variance, shift, 8))
    exact = np.maximum(with_ - math.exp(spent) * without, 0.0).sum()
    assert exact <= _DELTA
    # By divergences, and above them by the bound: loose by a third, but not by a half.
    assert np.maximum(with_ - math.exp(spent / 1.5) * without, 0.0).sum() > _DELTA


def test_between_integer_orders_the_bound_is_above_the_exact_and_below_the_next_integer():
    orders = np.array([1.1, 1.5, 1.9, 2.5, 6.3])
    for variance, shift in ((4.0, 1), (100.0, 5)):
        event = Skellam(1.0, shift, shift, variance, 1)
        whole = skellam_divergence(shift, shift, variance, ORDERS)
        between = _between(event, whole, orders)
        for order, bound in zip(orders, between, strict=True):
            without, with_ = _without_and_with(variance, shift, order)
            above = whole[math.ceil(order) - 2] * (1 + 1e-12)
            assert _divergence(with_, without, order) < bound <= above
