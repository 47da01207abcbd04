"""The ledger charges before, never refunds, and composes over rounds, runs and restarts."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
from toy_site import PERMISSIVE, PRIVACY, VECTOR, context, request, synthetic, train_message

from lepton_client import consent
from lepton_client.app import app
from lepton_client.data import SiteRecords
from lepton_client.ledger import Ledger
from lepton_client.people import people_secret, unit_hashes
from lepton_client.site import forget_sites
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import BudgetSpent, ConsentRefused, LedgerInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import read_update
from lepton_common.privacy.accounting import GaussianEvent, epsilon
from lepton_common.privacy.events import RoundedSkellam
from lepton_common.privacy.plan import WHOLE_SITE, for_people


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
    sigma = float(re.search(r"would fit with a noise multiplier of (\S+) instead of 1;", said)[1])
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
    monkeypatch.setattr(SiteRecords, "read", lambda _: pytest.fail("a record was read"))
    reply = app(train_message(privacy=PRIVACY), context(site.folder))
    assert reply.error.reason == "BudgetSpent"


def test_a_ledger_older_than_what_the_server_has_seen_is_refused(make_site):
    site = make_site()
    paths = [site.folder / name for name in ("ledger.db", "audit.jsonl")]
    head = reply_of(site, round=1).ledger_head
    forget_sites()
    older = [path.read_bytes() for path in paths]
    newer = reply_of(site, round=2, ledger_heads={"site-1": head}).ledger_head
    forget_sites()
    for path, before in zip(paths, older, strict=True):
        path.write_bytes(before)
    reply = app(
        train_message(round=3, privacy=PRIVACY, ledger_heads={"site-1": newer}),
        context(site.folder),
    )
    assert reply.error.reason == "LedgerRolledBack"
    # What other sites have shown says nothing about this one.
    reply_of(site, round=3, ledger_heads={"site-2": newer, "site-1": "0" * 64})


@pytest.mark.parametrize("how", ["older", "removed"])
def test_a_ledger_without_the_charges_of_the_audit_log_is_refused_whatever_was_seen(make_site, how):
    site = make_site()
    path = site.folder / "ledger.db"
    reply_of(site, round=1)
    forget_sites()
    older = path.read_bytes()
    reply_of(site, round=2)
    forget_sites()
    path.write_bytes(older) if how == "older" else path.unlink()
    reply = app(train_message(round=3, privacy=PRIVACY), context(site.folder))
    assert reply.error.reason == "LedgerRolledBack"


def test_what_leaves_says_nothing_of_who_was_in_earlier_data(make_site):
    said = []
    for name, first in (("disjoint", 8), ("overlapping", 7)):
        site = make_site(name=name)
        np.save(site.folder / "rows.npy", np.arange(8))
        forget_sites()
        before = reply_of(site, run="run-1", round=1).epsilon
        np.save(site.folder / "rows.npy", np.arange(first, 12))
        forget_sites()
        after = reply_of(site, run="run-2", round=1).epsilon
        spent = Ledger(site.folder / "ledger.db", site.key, "toy-data").epsilon(PRIVACY.delta)
        said.append((before, after, spent > after))
    assert [row[:2] for row in said] == [said[0][:2]] * 2
    assert said[0][0] == said[0][1]
    assert [row[2] for row in said] == [False, True]


def test_a_budget_that_earlier_people_have_spent_is_refused_without_its_name(make_site):
    twice = epsilon((GaussianEvent(0.5, 1.0, 4),), 1e-5)
    site = make_site(replace(PERMISSIVE, max_epsilon=twice * 1.01))
    for rows, run in (((0, 5), "run-1"), ((5, 10), "run-2")):
        np.save(site.folder / "rows.npy", np.arange(*rows))
        forget_sites()
        reply_of(site, run=run)
    # Some of these people were in the one, some in the other; the gate knows the last data only.
    np.save(site.folder / "rows.npy", np.arange(3, 8))
    forget_sites()
    reply = app(train_message(run="run-3", privacy=PRIVACY), context(site.folder))
    assert reply.error.reason == "PrivateWorkFailed"
    assert "BudgetSpent" in (site.folder / "errors.log").read_text()


@pytest.mark.parametrize("name", ["digits"])
def test_another_preparation_makes_no_new_people(make_site, name):
    secret, known = people_secret(make_site().key), []
    for prepare in ("public_ranges", "scattering"):
        dataset = load_dataset(name, None, prepare)
        known.append(unit_hashes(dataset.train, dataset.unit, secret))
    assert known[0] == known[1]


def test_another_unit_than_the_data_has_is_refused(make_site):
    site = make_site()
    path = site.folder / "site.yaml"
    path.write_text(path.read_text().replace("unit: row", "unit: patient"))
    forget_sites()
    reply = app(train_message(privacy=PRIVACY), context(site.folder))
    assert reply.error.reason == "PrivateWorkFailed"
    assert "unit is row" in (site.folder / "errors.log").read_text()


def test_what_protects_a_site_counts_twice_for_its_people():
    event = RoundedSkellam(1.0, 1000.0, 8, 2.0**26, 3)
    assert for_people("row", event) == event
    assert for_people(WHOLE_SITE, event) == replace(event, l2_sensitivity=2000.0)


def reply_of(site, **changes):
    reply = app(train_message(privacy=PRIVACY, **changes), context(site.folder))
    _, _, receipt = read_update(reply.content, len(VECTOR))
    return receipt


def test_people_are_known_by_their_id_or_else_by_their_record(make_site):
    secret = people_secret(make_site().key)
    records = synthetic(6)
    rows = unit_hashes(records, "row", secret)
    assert len(rows) == 6
    assert unit_hashes(records.take(np.array([5, 0, 3])), "row", secret) < rows
    assert not unit_hashes(synthetic(6, seed=5), "row", secret) & rows
    patients = replace(records, units=np.array([1, 1, 2, 2, 3, 3]))
    marked = replace(records, marks=np.arange(16 * len(records), dtype=np.uint8).reshape(-1, 16))
    otherwise = replace(marked, features=records.features[:, :1] * 3)
    assert unit_hashes(marked, "row", secret) == unit_hashes(otherwise, "row", secret)
    assert unit_hashes(marked.take(np.array([1])), "row", secret) < unit_hashes(
        marked, "row", secret
    )
    named = unit_hashes(patients, "patient", secret)
    assert len(named) == 3
    changed = replace(patients, features=patients.features + 1)
    assert unit_hashes(changed, "patient", secret) == named
    assert not unit_hashes(patients, "device", secret) & named
    assert not unit_hashes(patients, "patient", people_secret(SigningKey.generate())) & named
