"""The ledger charges before, never refunds, and composes over rounds, runs and restarts."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
from toy_site import PERMISSIVE, PRIVACY, VECTOR, context, request, synthetic, train_message

from lepton_client import consent
from lepton_client.app import app
from lepton_client.ledger import Ledger
from lepton_client.people import unit_hashes
from lepton_client.site import forget_sites
from lepton_common.errors import BudgetSpent, ConsentRefused, LedgerInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import read_update
from lepton_common.privacy.accounting import GaussianEvent, epsilon


def reserve(site, **changes):
    asked = request(privacy=PRIVACY, **changes)
    return site.ledger.reserve(consent.check(asked, site.file), asked, site.file.policy)


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
    site.ledger.reserve(consent.check(asked, site.file), asked, site.file.policy)
    both = (GaussianEvent(0.5, 1.0, 2), GaussianEvent(0.5, 30.0, 2))
    assert site.ledger.epsilon(1e-5) == pytest.approx(epsilon(both, 1e-5))


def test_a_run_keeps_the_plan_it_began_with(make_site):
    site = make_site()
    reserve(site)
    asked = request(privacy=replace(PRIVACY, max_steps=10**6))
    with pytest.raises(ConsentRefused, match="another privacy plan"):
        site.ledger.reserve(consent.check(asked, site.file), asked, site.file.policy)


def test_two_openings_of_one_site_cannot_both_charge(make_site):
    first, second = make_site(), make_site()
    reserve(first)
    with pytest.raises(LedgerInvalid, match="another process"):
        reserve(second)
    assert make_site().ledger.steps("run-1") == 2


def test_each_of_the_policys_budgets_holds(make_site, monkeypatch):
    once = epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    policy = replace(PERMISSIVE, max_epsilon_per_run=once * 1.2)
    site = make_site(policy)
    reserve(site)
    with pytest.raises(BudgetSpent, match="in this run; "):
        reserve(site, round=2)
    reserve(site, run="run-2")

    site = make_site(replace(PERMISSIVE, max_epsilon_per_period=once * 1.2, period_days=30), "two")
    reserve(site)
    with pytest.raises(BudgetSpent, match="in 30 days; "):
        reserve(site, run="run-2")
    later = time.time() + 31 * 86400
    monkeypatch.setattr("lepton_client.ledger.time.time", lambda: later)
    reserve(site, run="run-2")


def test_a_refusal_says_what_is_left_and_what_would_fit(make_site):
    once = epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    site = make_site(replace(PERMISSIVE, max_epsilon=once * 1.2))
    reserve(site)
    with pytest.raises(BudgetSpent) as refused:
        reserve(site, run="run-2")
    said = str(refused.value)
    assert f"{once:.3f} is spent, {0.2 * once:.3f} is left" in said
    sigma = float(re.search(r"A noise multiplier of (\S+) instead of 1 would fit", said)[1])
    quieter = (GaussianEvent(0.5, 1.0, 2), GaussianEvent(0.5, sigma, 2))
    assert epsilon(quieter, 1e-5) <= once * 1.2


@pytest.fixture
def people(make_site):
    """Returns a maker of ledgers on the file of one site, as data sets come and go."""
    site = make_site()

    def use(dataset, *units):
        ledger = Ledger(site.folder / "ledger.db", site.key, dataset)
        ledger.use_data("patient", frozenset(unit.encode().ljust(16) for unit in units))
        return ledger

    return use


def charge(ledger, run="run-1", policy=PERMISSIVE):
    asked = request(run=run, privacy=PRIVACY)
    return ledger.reserve(PRIVACY.plan("patient", 16), asked, policy)


def test_renamed_or_extended_data_inherits_what_its_people_have_spent(people):
    charge(people("2024", "ann", "bob"))
    spent = people("2024", "ann", "bob").epsilon(1e-5)
    assert people("renamed", "ann", "bob").epsilon(1e-5) == spent
    assert people("2025", "ann", "bob", "cid").epsilon(1e-5) == spent
    assert people("2026", "bob").epsilon(1e-5) == spent
    assert people("others", "dan", "eve").epsilon(1e-5) == 0


def test_people_of_two_data_sets_carry_both(people):
    charge(people("a", "ann", "bob"))
    charge(people("b", "cid"))
    both = people("c", "bob", "cid").epsilon(1e-5)
    assert both == pytest.approx(epsilon((GaussianEvent(0.5, 1.0, 4),), 1e-5))
    # Whoever shares nobody with the other's data carries one charge only.
    assert people("d", "ann").epsilon(1e-5) == epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)


def test_a_budget_cannot_be_had_again_by_renaming_the_data(people):
    once = epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    policy = replace(PERMISSIVE, max_epsilon=once * 1.2)
    charge(people("2024", "ann", "bob"), "run-1", policy)
    with pytest.raises(BudgetSpent):
        charge(people("renamed", "ann"), "run-2", policy)
    charge(people("others", "dan"), "run-3", policy)


def test_the_budget_of_known_data_is_checked_before_it_is_read(make_site, monkeypatch):
    site = make_site(replace(PERMISSIVE, max_epsilon=0.001))
    monkeypatch.setattr(type(site), "records", lambda _: pytest.fail("a record was read"))
    reply = app(train_message(privacy=PRIVACY), context(site.folder))
    assert reply.error.reason == "BudgetSpent"


def test_a_ledger_older_than_what_the_server_has_seen_is_refused(make_site):
    site = make_site()
    path = site.folder / "ledger.db"
    head = reply_of(site, round=1).ledger_head
    forget_sites()
    older = path.read_bytes()
    newer = reply_of(site, round=2, ledger_heads={"site-1": head}).ledger_head
    forget_sites()
    path.write_bytes(older)
    reply = app(
        train_message(round=3, privacy=PRIVACY, ledger_heads={"site-1": newer}),
        context(site.folder),
    )
    assert reply.error.reason == "LedgerRolledBack"
    # What other sites have shown says nothing about this one.
    reply_of(site, round=3, ledger_heads={"site-2": newer, "site-1": "0" * 64})


def reply_of(site, **changes):
    reply = app(train_message(privacy=PRIVACY, **changes), context(site.folder))
    _, _, receipt = read_update(reply.content, len(VECTOR))
    return receipt


def test_people_are_known_by_their_id_or_else_by_their_record(make_site):
    key = make_site().key
    records = synthetic(6)
    rows = unit_hashes(records, "row", key)
    assert len(rows) == 6
    assert unit_hashes(records.take(np.array([5, 0, 3])), "row", key) < rows
    assert not unit_hashes(synthetic(6, seed=5), "row", key) & rows
    patients = replace(records, units=np.array([1, 1, 2, 2, 3, 3]))
    marked = replace(records, marks=np.arange(16 * len(records), dtype=np.uint8).reshape(-1, 16))
    otherwise = replace(marked, features=records.features[:, :1] * 3)
    assert unit_hashes(marked, "row", key) == unit_hashes(otherwise, "row", key)
    assert unit_hashes(marked.take(np.array([1])), "row", key) < unit_hashes(marked, "row", key)
    named = unit_hashes(patients, "patient", key)
    assert len(named) == 3
    changed = replace(patients, features=patients.features + 1)
    assert unit_hashes(changed, "patient", key) == named
    assert not unit_hashes(patients, "device", key) & named
    assert not unit_hashes(patients, "patient", SigningKey.generate()) & named
