"""The certified bound: its p-value against exact binomials, and what it does with them."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import special, stats

from lepton_cli.privacy_audit.one_run import certified_bound, lower_bound, p_value


def _exactly(m, r, v, odds, delta):
    """The formula of the paper in whole fractions, for e^epsilon = odds."""
    right = Fraction(odds, odds + 1)
    mass = [math.comb(r, k) * right**k * (1 - right) ** (r - k) for k in range(r + 1)]
    chance = sum(mass[v:])
    steepest = max((sum(mass[v - i : v]) / i for i in range(1, v + 1)), default=0)
    return min(Fraction(1), chance + 2 * m * Fraction(delta) * steepest)


@pytest.mark.parametrize("odds", [1, 3, 20])
@pytest.mark.parametrize("delta", [0.0, 1e-5, 1e-2])
def test_the_p_value_is_the_papers_formula(odds, delta):
    for m, r in ((10, 1), (40, 7), (40, 40)):
        for v in range(r + 1):
            found = p_value(m, r, v, math.log(odds), delta)
            assert found == pytest.approx(float(_exactly(m, r, v, odds, delta)), rel=1e-9)


def test_without_delta_it_is_the_binomial_tail():
    for v in (0, 30, 60, 100):
        expected = stats.binom.sf(v - 1, 100, special.expit(1.5))
        assert p_value(1000, 100, v, 1.5, 0.0) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("delta", [0.0, 1e-4, 1e-2])
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 3.0])
def test_no_mechanism_that_keeps_the_promise_exceeds_it(epsilon, delta):
    """Randomised response that gives itself away: for each coin with delta, or for all at once."""
    m = r = 60
    lie = special.expit(epsilon)
    for v in range(r + 1):
        bound = p_value(m, r, v, epsilon, delta)
        each = stats.binom.sf(v - 1, r, delta + (1 - delta) * lie)
        at_once = delta + (1 - delta) * stats.binom.sf(v - 1, r, lie)
        assert max(each, at_once) <= bound + 1e-12


def test_guesses_of_a_mechanism_by_brute_force():
    """All outcomes of three coins under randomised response, counted one by one."""
    epsilon, right = math.log(3), Fraction(3, 4)
    for v in range(4):
        chance = Fraction(0)
        for outcome in range(8):
            hits = outcome.bit_count()
            if hits >= v:
                chance += right**hits * (1 - right) ** (3 - hits)
        assert p_value(3, 3, v, epsilon, 0.0) == pytest.approx(float(chance))


def test_the_bound_is_where_the_p_value_is_what_may_fail():
    bound = lower_bound(1000, 500, 450, 1e-5, 0.05)
    assert p_value(1000, 500, 450, bound, 1e-5) == pytest.approx(0.05, rel=1e-5)
    assert p_value(1000, 500, 450, bound - 0.01, 1e-5) < 0.05
    assert lower_bound(1000, 500, 260, 1e-5, 0.05) == 0.0
    assert lower_bound(1000, 500, 450, 1e-2, 0.05) == 0.0  # so large a delta explains it


def test_all_right_saturates_as_the_number_of_guesses_says():
    for guesses in (100, 500):
        exact = special.logit(0.05 ** (1 / guesses))
        assert lower_bound(1000, guesses, guesses, 0.0, 0.05) == pytest.approx(exact)


def test_blind_scores_certify_next_to_nothing():
    draws = np.random.default_rng(1)
    inside = draws.random(2000) < 0.5
    bound, tried = certified_bound(draws.normal(size=2000), inside, 1e-5)
    assert bound < 0.5
    assert [guess.guesses for guess in tried] == [124, 250, 500, 1000]


def test_perfect_scores_are_all_right():
    inside = np.arange(2000) % 2 == 0
    bound, tried = certified_bound(inside.astype(float), inside, 1e-5)
    assert all(guess.correct == guess.guesses for guess in tried)
    assert bound == max(guess.epsilon for guess in tried) > 5.0


def test_the_bound_holds_as_often_as_it_says():
    """Randomised response of epsilon 1 leaks exactly what it may: the bound may fail in 5 %."""
    draws = np.random.default_rng(2)
    failed, times = 0, 200
    for _ in range(times):
        inside = draws.random(1000) < 0.5
        told = np.where(draws.random(1000) < special.expit(1.0), inside, ~inside)
        scores = told + 1e-3 * draws.random(1000)
        failed += certified_bound(scores, inside, 0.0)[0] > 1.0
    assert stats.binom.sf(failed - 1, times, 0.05) > 1e-4
