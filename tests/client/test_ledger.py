"""The ledger charges before, never refunds, and composes over rounds, runs and restarts."""

from dataclasses import replace

import pytest
from toy_site import PERMISSIVE, PRIVACY, request

from lepton_client import consent
from lepton_common.errors import AuditError, BudgetSpent, ConsentRefused
from lepton_common.privacy.accounting import GaussianEvent, epsilon


def reserve(site, **changes):
    asked = request(privacy=PRIVACY, **changes)
    return site.ledger.reserve(
        consent.check(asked, site.file, masked=False), asked, site.file.policy
    )


def test_epsilon_is_that_of_all_rounds_together_and_not_of_the_last_one(make_site):
    site = make_site()
    for round_ in (1, 2, 3):
        reserve(site, round=round_)
    assert site.ledger.steps("run-1") == 6
    whole = epsilon((GaussianEvent(0.5, 1.0, 6),), 1e-5)
    assert site.ledger.epsilon(1e-5) == whole
    assert whole > 1.5 * epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)


def test_a_charge_without_a_release_stays_spent_after_a_restart(make_site):
    reserve(make_site())
    assert make_site().ledger.steps("run-1") == 2


def test_steps_beyond_the_plan_are_refused_and_not_charged(make_site):
    site = make_site()
    for round_ in (1, 2, 3):
        reserve(site, round=round_)
    with pytest.raises(BudgetSpent, match="covers 6 steps and 6 are taken"):
        reserve(site, round=4)
    assert site.ledger.steps("run-1") == 6


def test_the_policys_epsilon_holds_over_runs_and_unlike_mechanisms(make_site):
    first = epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    site = make_site(replace(PERMISSIVE, max_epsilon=first * 1.2))
    reserve(site)
    with pytest.raises(BudgetSpent, match="would bring the data to epsilon"):
        reserve(site, run="run-2")
    quieter = replace(PRIVACY, noise_multiplier=30.0)
    asked = request(run="run-2", privacy=quieter)
    site.ledger.reserve(consent.check(asked, site.file, masked=False), asked, site.file.policy)
    both = (GaussianEvent(0.5, 1.0, 2), GaussianEvent(0.5, 30.0, 2))
    assert site.ledger.epsilon(1e-5) == pytest.approx(epsilon(both, 1e-5))


def test_a_run_keeps_the_plan_it_began_with(make_site):
    site = make_site()
    reserve(site)
    asked = request(privacy=replace(PRIVACY, max_steps=10**6))
    with pytest.raises(ConsentRefused, match="another privacy plan"):
        site.ledger.reserve(consent.check(asked, site.file, masked=False), asked, site.file.policy)


def test_two_openings_of_one_site_cannot_both_charge(make_site):
    first, second = make_site(), make_site()
    reserve(first)
    with pytest.raises(AuditError, match="another process"):
        reserve(second)
    assert make_site().ledger.steps("run-1") == 2
