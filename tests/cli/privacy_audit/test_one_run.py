"""One run with canaries: below the claim where training is honest, above it where it is not."""

from dataclasses import replace

import numpy as np
import pytest

from lepton_cli.privacy_audit.canaries import CanarySite
from lepton_cli.privacy_audit.gaussian import (
    faultless_mu,
    gaussian_epsilon,
    log_likelihood_ratio,
)
from lepton_cli.privacy_audit.one_run import audit_one_run
from lepton_common.privacy.plan import PrivacyPlan, SharedNoise

STEPS = 12


def _failed(found):
    return [check.name for check in found.checks if not check.passed]


@pytest.mark.parametrize(("epsilon", "rate"), [(3.0, 1.0), (3.0, 0.2), (1.0, 1.0)])
def test_an_honest_plan_stays_below_its_claim(make_plan, epsilon, rate):
    plan = make_plan(epsilon, rate)
    ticks = []
    found = audit_one_run(plan, STEPS, 2000, advance=lambda: ticks.append(1))
    assert found.certified_epsilon < plan.epsilon(STEPS) <= epsilon
    assert not _failed(found)
    assert len(ticks) == STEPS
    assert found.canaries == 2000
    assert 850 < found.present < 1150


@pytest.mark.parametrize("way", ["noise cut to an eighth", "no noise", "clipping off"])
@pytest.mark.parametrize(("epsilon", "rate"), [(3.0, 1.0), (3.0, 0.5), (1.0, 1.0)])
def test_a_broken_run_exceeds_its_claim(make_plan, break_it, way, epsilon, rate):
    plan = make_plan(epsilon, rate)
    break_it(way)
    found = audit_one_run(plan, STEPS, 2000)
    assert found.certified_epsilon > epsilon
    assert found.gaussian_estimate.epsilon_interval[0] > epsilon
    assert _failed(found)


def test_a_tenth_less_noise_is_seen_though_not_certified(make_plan, break_it):
    plan = make_plan(3.0)
    break_it("noise a tenth too small")
    found = audit_one_run(plan, STEPS, 2000)
    assert _failed(found) == ["canaries: noise where none is present"]
    assert found.certified_epsilon < 3.0


def test_our_engine_broken_alone_falls_back_on_opacus(make_plan, break_it):
    """The batch that must agree with Opacus comes before any canary."""
    plan = make_plan(3.0)
    break_it("broken clipper")
    assert audit_one_run(plan, STEPS, 1000).certified_epsilon < 3.0


def test_the_estimate_is_the_true_mu_without_sampling(make_plan):
    plan = make_plan(3.0)
    found = audit_one_run(plan, STEPS, 5000).gaussian_estimate
    true = STEPS**0.5 / plan.noise_multiplier
    assert found.plan_mu == pytest.approx(true, rel=1e-6)
    assert found.plan_epsilon == pytest.approx(plan.epsilon(STEPS), rel=1e-5)
    assert abs(found.mu - true) < 6 * 2 / 5000**0.5
    low, high = found.interval
    assert low < found.mu < high
    assert 0.6 < (high - low) / (4 * 1.96 / 5000**0.5) < 1.6
    assert found.epsilon == gaussian_epsilon(found.mu, plan.delta)
    assert found.epsilon_interval == tuple(gaussian_epsilon(mu, plan.delta) for mu in (low, high))


def test_the_estimate_is_that_of_a_faultless_run_with_sampling(make_plan):
    plan = make_plan(3.0, 0.2)
    found = audit_one_run(plan, STEPS, 5000).gaussian_estimate
    assert abs(found.mu - found.plan_mu) < 7 * 2 / 5000**0.5
    assert found.plan_epsilon < plan.epsilon(STEPS)


def test_the_distance_of_a_faultless_run_is_that_of_ideal_draws():
    draws = np.random.default_rng(3)
    noise = draws.normal(scale=1.2, size=(2, 200_000))
    sampled = draws.random(200_000) < 0.3
    out, within = (log_likelihood_ratio(x, 0.3, 1.2) for x in (noise[0], noise[1] + sampled))
    drawn = (within.mean() - out.mean()) / np.sqrt((within.var() + out.var()) / 2)
    assert abs(faultless_mu(0.3, 1.2, 1) - drawn) < 0.02
    assert faultless_mu(0.3, 1.2, 9) == pytest.approx(3 * faultless_mu(0.3, 1.2, 1))


def test_the_likelihood_ratio_is_that_of_the_densities():
    shown = np.array([-3.0, 0.0, 0.5, 1.0, 4.0])
    apart = np.exp(-((shown - 1) ** 2) / 8) / np.exp(-(shown**2) / 8)
    for rate in (0.1, 1.0):
        expected = np.log(1 - rate + rate * apart)
        np.testing.assert_allclose(log_likelihood_ratio(shown, rate, 2.0), expected, atol=1e-12)


def test_what_leaks_without_limit_is_infinite_and_nothing_is_nothing():
    assert gaussian_epsilon(1e6, 1e-5) == float("inf")
    assert gaussian_epsilon(0.0, 1e-5) == 0.0


def test_a_release_is_the_noise_plus_one_for_each_canary_that_is_there(make_plan):
    quiet = replace(make_plan(), noise_multiplier=1e-6)
    present = np.array([0, 3, 4])
    site = CanarySite(quiet, 6, present, releases=40)
    total = sum(site.release() for _ in range(40))
    np.testing.assert_allclose(total, 40.0 * np.isin(np.arange(6), present), atol=1e-3)


def test_shared_noise_is_audited_with_the_shares_that_are_certain():
    shared = SharedNoise(sites=5, survivors=4, colluders=1, dimension=1000)
    plan = PrivacyPlan("row", 1e-5, 1.0, 4.0, 0.5, 1, 8, 100.0, shared)
    found = audit_one_run(plan, 8, 2000)
    assert not _failed(found)
    assert found.certified_epsilon < plan.epsilon(8)
    assert abs(found.gaussian_estimate.mu - 8**0.5 / 4.0) < 6 * 2 / 2000**0.5
