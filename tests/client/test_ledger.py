"""The ledger charges before, never refunds, and composes over rounds, runs and restarts."""

import re
import time
from dataclasses import replace

import numpy as np
import pytest
from toy_site import PERMISSIVE, PRIVACY, VECTOR, context, request, synthetic, train_message
from typer.testing import CliRunner

from lepton_cli.main import app as lepton
from lepton_client import consent
from lepton_client.app import app
from lepton_client.data import SiteRecords
from lepton_client.ledger import Ledger
from lepton_client.people import people_secret, unit_hashes
from lepton_client.site import forget_sites, open_site
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import (
    BudgetSpent,
    ClockBehind,
    ConsentRefused,
    LedgerInvalid,
    PeopleKnown,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import read_update
from lepton_common.privacy.accounting import GaussianEvent, epsilon
from lepton_common.privacy.events import RoundedSkellam
from lepton_common.privacy.ledger_file import LedgerFile
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


def test_a_clock_that_was_set_back_hides_no_charge(make_site, monkeypatch):
    once = epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    policy = replace(PERMISSIVE, max_epsilon_per_period=once * 1.2, period_days=30)
    site, now = make_site(policy), time.time()

    def at(days):
        monkeypatch.setattr("lepton_common.chain.time.time", lambda: now + days * 86400)

    at(0)
    reserve(site)
    at(-0.9)
    with pytest.raises(BudgetSpent):
        reserve(site, run="run-2")
    at(-40)
    with pytest.raises(ClockBehind, match="more than a day"):
        reserve(site, run="run-2")
    # Without a budget for a period it is charged, at a time that is not before the others'.
    quiet = replace(policy, max_epsilon_per_period=None)
    asked = request(run="run-2", privacy=PRIVACY)
    site.ledger.reserve(consent.check(asked, site.file), asked, quiet)
    at(1)
    with pytest.raises(BudgetSpent):
        reserve(site, run="run-3")
    times = [record.time for record in site.ledger._file.contents.records]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(now, abs=1)
    at(31)
    reserve(site, run="run-3")


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


def test_all_that_was_charged_counts_whoever_is_in_the_data(people):
    charge(people("2024", "ann", "bob"))
    spent = people("2024", "ann", "bob").epsilon(1e-5)
    for data in (("renamed", "ann", "bob"), ("2026", "bob", "cid"), ("others", "dan", "eve")):
        assert people(*data).epsilon(1e-5) == spent > 0


def test_a_budget_cannot_be_had_again_by_renaming_the_data(people):
    once = epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    policy = replace(PERMISSIVE, max_epsilon=once * 1.2)
    charge(people("2024", "ann", "bob"), "run-1", policy)
    for data in (("renamed", "ann"), ("others", "dan")):
        with pytest.raises(BudgetSpent):
            charge(people(*data), "run-2", policy)


def hashes(*units):
    return frozenset(unit.encode().ljust(16) for unit in units)


def kinds(ledger):
    return [record.kind for record in ledger._file.contents.records]


def test_new_people_start_at_zero_by_an_entry_of_the_operators_alone(people):
    ledger = people("2024", "ann", "bob")
    charge(ledger)
    assert ledger.known(hashes("bob", "dan")) == 1
    for known in (("ann", "dan"), ("ann", "bob")):
        with pytest.raises(PeopleKnown, match="on record"):
            ledger.start_afresh("patient", hashes(*known))
    with pytest.raises(PeopleKnown, match="would not be known again"):
        ledger.start_afresh("row", hashes("dan"))
    assert kinds(ledger) == ["open", "data", "charge"]
    ledger.start_afresh("patient", hashes("dan", "eve"))
    assert kinds(ledger)[3:] == ["fresh", "data"]
    assert ledger.epsilon(1e-5) == 0
    ledger = people("2025", "dan", "eve")
    assert ledger.epsilon(1e-5) == 0
    charge(ledger, "run-2")
    # Whoever else is new may come too; what was charged since the start counts for them.
    later = people("2026", "dan", "fay")
    assert later.epsilon(1e-5) == epsilon((GaussianEvent(0.5, 1.0, 2),), 1e-5)
    with pytest.raises(PeopleKnown):
        later.start_afresh("patient", hashes("ann", "gus"))


@pytest.mark.parametrize("returning", [("ann",), ("dan", "bob"), ("ann", "bob")])
def test_a_fresh_start_is_void_once_somebody_of_before_is_back(people, returning):
    charge(people("2024", "ann", "bob"))
    ledger = people("2024", "ann", "bob")
    ledger.start_afresh("patient", hashes("dan"))
    charge(ledger, "run-2")
    with pytest.raises(PeopleKnown, match="void"):
        ledger.use_data("patient", hashes(*returning))
    both = epsilon((GaussianEvent(0.5, 1.0, 4),), 1e-5)
    assert kinds(ledger)[-1] == "void"
    for again in (ledger, people("2027", "dan")):
        assert again.epsilon(1e-5) == pytest.approx(both)
    ledger = people("2028", "dan")
    ledger.start_afresh("patient", hashes("eve"))
    assert ledger.epsilon(1e-5) == 0


def test_another_unit_after_a_fresh_start_makes_it_void(people):
    charge(people("2024", "ann"))
    ledger = people("2024", "ann")
    ledger.start_afresh("patient", hashes("dan"))
    with pytest.raises(PeopleKnown, match="another unit"):
        ledger.use_data("row", hashes("row 7"))
    assert ledger.epsilon(1e-5) > 0


def test_a_crash_before_the_void_is_written_loses_nothing(people, monkeypatch):
    charge(people("2024", "ann"))
    ledger = people("2024", "ann")
    ledger.start_afresh("patient", hashes("dan"))
    monkeypatch.setattr(LedgerFile, "append", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        ledger.use_data("patient", hashes("dan", "ann"))
    monkeypatch.undo()
    with pytest.raises(PeopleKnown):
        people("2024", "dan", "ann")
    assert ledger.epsilon(1e-5) > 0


def rows_of(site, *rows):
    np.save(site.folder / "rows.npy", np.arange(*rows))


def test_refusals_do_not_tell_who_was_in_earlier_data(make_site):
    # What an attack asked: after a first round on new data, with which noise does a round fit?
    said = []
    for name, common in (("disjoint", False), ("shared", True)):
        site = make_site(replace(PERMISSIVE, max_epsilon=10.0), name)
        rows_of(site, 20)
        forget_sites()
        answers = [answer(site, "run-a", 1.0)]
        rows = np.append(np.arange(20, 39), 7) if common else np.arange(20, 40)
        np.save(site.folder / "rows.npy", rows)
        forget_sites()
        answers.append(answer(site, "run-b", 30.0))
        answers += [answer(site, f"probe-{n}", n) for n in (0.8, 0.75, 0.72, 0.7)]
        said.append(answers)
    assert said[0] == said[1]
    assert said[0][:2] == ["released", "released"]
    assert "BudgetSpent" in said[0]


def test_a_receipt_says_nothing_of_who_was_in_earlier_data(make_site):
    said = []
    for name, first in (("disjoint", 8), ("shared", 7)):
        site = make_site(name=name)
        rows_of(site, 8)
        forget_sites()
        before = reply_of(site, run="run-1", round=1).epsilon
        rows_of(site, first, 12)
        forget_sites()
        said.append((before, reply_of(site, run="run-2", round=1).epsilon))
    assert said[0] == said[1]
    assert said[0][0] == said[0][1]


def test_how_long_the_ledger_is_says_nothing_of_whether_the_data_changed(make_site):
    # The site reports that length to the coordinator, signed, after each release.
    lengths = []
    for name, then in (("same", [8, 8]), ("another", [9, 9]), ("back", [9, 8])):
        site = make_site(name=name)
        for round_, rows in enumerate([8, *then], 1):
            rows_of(site, rows)
            forget_sites()
            reply_of(site, run="run-1", round=round_)
        forget_sites()
        lengths.append(len(open_site(str(site.folder)).ledger.records))
    assert lengths[0] == lengths[1] == lengths[2]


def answer(site, run, noise):
    asked = replace(PRIVACY, noise_multiplier=noise, sample_rate=1.0, steps_per_round=1)
    reply = app(train_message(run=run, privacy=asked), context(site.folder))
    return reply.error.reason if reply.has_error() else "released"


@pytest.mark.parametrize("back", [False, True])
def test_an_agent_that_runs_notices_the_operators_fresh_start(make_site, back):
    once = epsilon((GaussianEvent(1.0, 1.0, 1),), 1e-5)
    site = make_site(replace(PERMISSIVE, max_epsilon=once * 1.2))
    rows_of(site, 8)
    assert answer(site, "run-1", 1.0) == "released"
    assert answer(site, "run-2", 1.0) == "BudgetSpent"
    rows_of(site, 8, 12)
    found = CliRunner().invoke(lepton, ["site", "data", str(site.folder)])
    assert "4 units (row), of which 0 are on record; epsilon" in found.output
    made = CliRunner().invoke(lepton, ["site", "data", str(site.folder), "--new-people"])
    assert "A fresh start for 4 units (row)" in made.output
    assert "BudgetSpent" not in str(made.exception)
    if back:
        rows_of(site, 7, 12)
    load_dataset.cache_clear()
    assert answer(site, "run-3", 1.0) == ("PrivateWorkFailed" if back else "released")
    assert answer(site, "run-4", 1.0) == "BudgetSpent"
    assert ("PeopleKnown" in (site.folder / "errors.log").read_text()) == back
    again = CliRunner().invoke(lepton, ["site", "data", str(site.folder), "--new-people"])
    assert isinstance(again.exception, PeopleKnown)


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
