"""What a server may ask a site's statistics for, and what the site makes of an attack."""

import math
from dataclasses import replace

import numpy as np
import pytest
from dp_accounting import GaussianDpEvent
from dp_accounting.pld import PLDAccountant
from toy_federation import Federation
from toy_site import PERMISSIVE, PRIVACY, VECTOR, ask, context, request, synthetic

from lepton_client import consent
from lepton_client.app import app
from lepton_client.hosted import work
from lepton_client.training.statistics import bounded_sum
from lepton_common.arrays import digest_of, pack
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import ConsentRefused, PlanError, PolicyViolation
from lepton_common.hosting import train_many_content
from lepton_common.messages import model_record, read_update, train_content
from lepton_common.policy import StatisticsRules
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import read_event
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.privacy.plan import SHARE_VARIANCE
from lepton_common.secagg.ring import whole_clip
from lepton_common.statistics import StatisticsQuery, cells_of

RULES = StatisticsRules(max_epsilon=2.0, min_cohort=3, max_bins=8)
ALLOWED = replace(PERMISSIVE, statistics=RULES)
OWN = replace(PRIVACY, sample_rate=1.0, noise_multiplier=4.0, steps_per_round=1, max_steps=1)
SHARED = replace(OWN, mode="distributed")
QUERY = StatisticsQuery(bins=4, features=None)


def cells(query=QUERY):
    return cells_of(query, load_dataset("toy", None, "public_ranges"))


def query(asked=QUERY, run="run-1", **changes):
    """Returns a valid request for statistics, and what stands in the model's place."""
    probe = cells(asked).probe(run)
    valid = request(
        run=run,
        layout=cells(asked).digest,
        model_digest=digest_of(pack(probe).data),
        privacy=OWN,
        statistics=asked,
    )
    return replace(valid, **changes), probe


def asked_of(site, *parts, **changes):
    valid, probe = query(*parts, **changes)
    return app(ask(train_content(valid, probe)), context(site.folder))


def charges(site):
    contents = read_ledger(site.folder / "ledger.db", site.key.public_hex)
    return [record for record in contents.records if record.kind == "charge"]


@pytest.mark.parametrize(
    ("policy", "changes", "reason"),
    [
        (PERMISSIVE, {}, "answers no statistics"),
        (ALLOWED, {"privacy": None}, "differential privacy only"),
        (ALLOWED, {"privacy": replace(OWN, noise_multiplier=0.5)}, "exceed this site's 2"),
        (ALLOWED, {"privacy": replace(OWN, max_steps=50)}, "exceed this site's 2"),
        (ALLOWED, {"privacy": replace(OWN, sample_rate=0.01)}, "one sum over all people"),
        (ALLOWED, {"privacy": replace(OWN, steps_per_round=2, max_steps=2)}, "one sum over all"),
        (ALLOWED, {"privacy": replace(OWN, mode="site")}, "one sum over all people"),
        (ALLOWED, {"privacy": replace(OWN, delta=1e-2)}, "delta"),
        (ALLOWED, {"privacy": replace(OWN, clipping_norm=1e4)}, "clipping norm"),
        (ALLOWED, {"cohort": 2}, "floor of 3 for statistics"),
        (ALLOWED, {"statistics": replace(QUERY, bins=9)}, "9 bins exceed this site's 8"),
        (replace(ALLOWED, tasks=["digits"]), {}, "does not serve"),
        (replace(ALLOWED, min_noise_multiplier=5.0), {}, "noise multiplier"),
        (replace(ALLOWED, allow_without_secagg=False), {}, "secure aggregation only"),
    ],
)
def test_what_the_policy_does_not_allow_is_refused_before_anything_is_read(
    make_site, toy_catalog, policy, changes, reason
):
    site = make_site(policy)
    valid, probe = query(**changes)
    with pytest.raises(ConsentRefused, match=reason):
        consent.check(valid, site.file)
    toy_catalog["train"] = None  # reading it would fail
    reply = app(ask(train_content(valid, probe)), context(site.folder))
    assert reply.error.reason == "ConsentRefused"
    assert not [record for record in site.ledger.records if record.kind == "charge"]


def test_statistics_are_answered_by_sites_that_train_other_models(make_site):
    site = make_site(replace(ALLOWED, models=["logistic"]))
    assert consent.check(query()[0], site.file) is not None


def test_an_answer_is_charged_as_the_accountants_say_and_marked_in_the_log(make_site):
    site = make_site(ALLOWED)
    reply = asked_of(site)
    update, metrics, receipt = read_update(reply.content, cells().size)
    assert not metrics
    (charge,) = charges(site)
    event = read_event(charge.body["event"])
    oracle = PLDAccountant()
    oracle.compose(GaussianDpEvent(4.0))
    exact = oracle.get_epsilon(1e-5)
    assert epsilon((event,), 1e-5) == pytest.approx(exact, rel=1e-3)
    assert receipt.epsilon == pytest.approx(exact, rel=1e-3)
    released = [r for r in make_site().audit.records if r.kind == "release"]
    assert released[-1].body["of"] == "statistics"
    assert released[-1].body["charge"] == charge.hash
    assert len(update) == cells().size


def test_a_server_that_asks_twice_is_refused_by_the_plan_and_then_by_the_budget(make_site):
    site = make_site(replace(ALLOWED, max_epsilon=1.2))
    assert not asked_of(site).has_error()
    assert asked_of(site).error.reason == "BudgetSpent"
    assert asked_of(site, run="run-2").error.reason == "BudgetSpent"
    assert len(charges(site)) == 1


def test_a_larger_bound_brings_as_much_more_noise(make_site):
    """Answers are all noise beside a large multiplier, whose scale is that of the bound."""
    for norm in (1.0, 100.0):
        site = make_site(ALLOWED, name=f"site-{norm:g}")
        private = replace(OWN, clipping_norm=norm, noise_multiplier=1e4)
        drawn = []
        for run in range(10):
            reply = asked_of(site, run=f"run-{run}", privacy=private)
            drawn.append(read_update(reply.content, cells().size)[0])
        values = np.concatenate(drawn)
        # 6 standard errors of a standard deviation.
        assert values.std() == pytest.approx(1e4 * norm, rel=6 / math.sqrt(2 * len(values)))


def test_another_layout_than_the_sites_own_ends_under_one_name(make_site):
    site = make_site(ALLOWED)
    assert asked_of(site, layout="0" * 64).error.reason == "PrivateWorkFailed"
    other = replace(QUERY, features=[0, 99])
    valid, probe = query()
    spoiled = replace(valid, run="run-2", statistics=other)
    reply = app(ask(train_content(spoiled, probe)), context(site.folder))
    assert reply.error.reason == "PrivateWorkFailed"
    short = VECTOR[:3].copy()
    wrong = replace(valid, run="run-3", model_digest=digest_of(pack(short).data))
    reply = app(ask(train_content(wrong, short)), context(site.folder))
    assert reply.error.reason == "PrivateWorkFailed"
    assert len(charges(site)) == 3  # whatever went wrong, it stays spent


def test_odd_records_are_as_good_as_any(make_site, toy_catalog):
    records = toy_catalog["train"]
    toy_catalog["train"] = replace(records, features=1e20 * records.features)
    site = make_site(ALLOWED, rows=20)
    values = read_update(asked_of(site).content, cells().size)[0]
    assert np.abs(values).max() <= 20 + 8 * 4.0


def masked(federation, monkeypatch, run="run-1", **changes):
    """Returns the server of a masked round of statistics."""
    valid, probe = query(run=run, privacy=SHARED)
    monkeypatch.setattr("toy_federation.VECTOR", probe)
    form = federation.request().masked
    valid = replace(valid, cohort=len(federation.folders), masked=form)
    options = {"colluders": 1, "clip": whole_clip(32, len(federation.folders)), **changes}
    return federation.server(valid, **options)


def test_a_masked_sum_holds_the_people_and_the_noise_that_was_charged(make_site, monkeypatch):
    federation = Federation(make_site, 4, policy=ALLOWED)
    plan, left = None, []
    for run in range(6):
        server = masked(federation, monkeypatch, run=f"run-{run}")
        total, _ = server.run([1, 2, 3, 4])
        plan = consent.check(server.request, federation.open(1).file, server.spec)
        left.append(total * plan.grid)
    site = federation.open(1)
    events = [read_event(charge.body["event"]) for charge in charges(site)]
    assert {event.variance for event in events} == {2 * SHARE_VARIANCE}
    assert [event.l2_sensitivity * plan.grid for event in events] == pytest.approx([1.0] * 6)
    truth = 4 * bounded_sum(synthetic(), cells())  # four sites with the same rows
    noise = np.concatenate(left) - np.tile(truth, 6)
    assert noise.std() == pytest.approx(2 * plan.own_noise, rel=6 / math.sqrt(2 * len(noise)))
    assert abs(noise.mean()) < 6 * 2 * plan.own_noise / math.sqrt(len(noise))


def test_a_masked_sum_of_too_few_sites_is_refused(make_site, monkeypatch):
    rules = replace(RULES, min_cohort=4)
    federation = Federation(make_site, 4, policy=replace(PERMISSIVE, statistics=rules))
    server = masked(federation, monkeypatch)  # 4 are asked, but 3 are enough for a sum
    site = federation.open(1)
    with pytest.raises(PolicyViolation, match="as many sites"):
        consent.check_round(server.spec, server.request, site.file, site.roster)


def test_a_query_is_bound_to_its_round(make_site, monkeypatch):
    federation = Federation(make_site, 4, policy=ALLOWED)
    server = masked(federation, monkeypatch)
    site = federation.open(1)
    consent.check_round(server.spec, server.request, site.file, site.roster)
    other = replace(server.request, statistics=replace(QUERY, bins=5))
    with pytest.raises(PolicyViolation, match="bound to its request"):
        consent.check_round(server.spec, other, site.file, site.roster)


def test_noise_of_its_own_and_shared_noise_are_not_mixed_up(make_site):
    with pytest.raises((ConsentRefused, PlanError)):
        consent.check(query(privacy=SHARED)[0], make_site(ALLOWED).file)


def test_hosts_of_many_sites_answer_no_statistics():
    valid, probe = query()
    message = ask(train_many_content(valid, model_record(probe), [0]))
    with pytest.raises(ConsentRefused, match="answers no statistics"):
        work.train(message, host=None)


def test_one_person_more_moves_an_answer_by_no_more_than_was_charged_for(make_site, toy_catalog):
    """One person more moves an answer by a norm of 1 at most, and by no less than its count."""
    records = toy_catalog["train"]
    with_, without = records.take(np.arange(40)), records.take(np.arange(39))
    moved = bounded_sum(with_, cells()) - bounded_sum(without, cells())
    assert cells().scale[0] <= np.linalg.norm(moved) <= 1 + 1e-12
