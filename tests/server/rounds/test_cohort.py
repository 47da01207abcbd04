"""Tests of who takes part."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from scipy import stats

from lepton_common.audit import AuditLog, read_records
from lepton_common.errors import QuorumNotMet, SitesRefused
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import SiteFacts
from lepton_common.settings import FederationSettings
from lepton_common.strict import to_json
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.cohort import pick_cohort
from lepton_server.rounds.introduction import Introduction


def _facts(name):
    return SiteFacts(
        name=name, public_key="a" * 64, public_size=8, unit="row", audit_head=name[-1] * 64
    )


_SITES = {node: _facts(f"site-{node:02}") for node in range(2, 22)}


def test_a_cohort_has_its_size_and_is_in_order_of_names():
    for size in (1, 5, 20):
        cohort = pick_cohort(_SITES, size, seed=1, round_=1)
        assert len(cohort) == size
        names = [facts.name for facts in cohort.values()]
        assert names == sorted(names)
        assert cohort.items() <= _SITES.items()


def test_a_cohort_depends_on_seed_round_and_names_only():
    first = pick_cohort(_SITES, 5, seed=1, round_=1)
    shuffled = dict(reversed(_SITES.items()))
    assert list(pick_cohort(shuffled, 5, seed=1, round_=1).items()) == list(first.items())
    renumbered = {node + 100: facts for node, facts in _SITES.items()}
    again = pick_cohort(renumbered, 5, seed=1, round_=1)
    assert [facts.name for facts in again.values()] == [facts.name for facts in first.values()]
    assert pick_cohort(_SITES, 5, seed=1, round_=2) != first
    assert pick_cohort(_SITES, 5, seed=2, round_=1) != first


def test_over_many_rounds_every_site_is_asked_equally_often():
    asked = np.zeros(20)
    for round_ in range(1, 1001):
        for node in pick_cohort(_SITES, 5, seed=1, round_=round_):
            asked[node - 2] += 1
    assert asked.sum() == 5000
    assert stats.chisquare(asked).pvalue > 1e-4


@pytest.fixture
def audit(tmp_path):
    return AuditLog(tmp_path / "audit.jsonl", SigningKey.generate(), "server")


FEDERATION = FederationSettings(
    name="hospitals", cohort=None, quorum=0.5, round_timeout_s=10.0, approval_timeout_s=10.0,
    weights="equal",
)  # fmt: skip


def _introduce(audit, names, waits=None, federation=FEDERATION):
    waits = waits or {}

    def app(message, context):
        name = names[context.node_id]
        if waits.get(context.node_id, 0) > 0:
            waits[context.node_id] -= 1
            return Message(Error(100, "ApprovalPending"), reply_to=message)
        if name is None:
            return Message(Error(100, "ConsentRefused"), reply_to=message)
        text = to_json(_facts(name)) if name else "{}"
        return Message(RecordDict({"site": ConfigRecord({"json": text})}), reply_to=message)

    grid = InProcessGrid(app, {node: {} for node in names})
    try:
        return Introduction(grid, "run-1", federation, audit).of(grid.get_node_ids()).sites
    finally:
        grid.close()


def test_sites_introduce_themselves_and_the_audit_log_has_their_heads(audit, tmp_path):
    sites = _introduce(audit, {2: "c", 3: "a", 4: None, 5: "", 6: "b"})
    assert [(node, facts.name) for node, facts in sites.items()] == [(3, "a"), (6, "b"), (2, "c")]
    record = list(read_records(tmp_path / "audit.jsonl"))[-1]
    assert record.kind == "introduced"
    assert record.body["heads"] == {name: name * 64 for name in "abc"}
    assert record.body["keys"] == dict.fromkeys("abc", "a" * 64)
    assert record.body["failed"] == ["ConsentRefused", "MalformedMessage"]


class Watching(Observer):
    def __init__(self, stop=False):
        super().__init__()
        self.waited, self._stop = [], stop

    def on_waiting(self, sites):
        self.waited.append(sites)
        self.stop_requested = self._stop


@pytest.fixture
def watching(monkeypatch):
    monkeypatch.setattr("lepton_server.rounds.introduction._ASK_AGAIN_S", 0.01)

    def watch(**options):
        observer = Watching(**options)
        OBSERVER.set(observer)
        return observer

    yield watch
    OBSERVER.set(Observer())


def test_sites_whose_operators_decide_by_hand_are_waited_for(audit, watching):
    observer = watching()
    sites = _introduce(audit, {2: "a", 3: "b", 4: "c"}, waits={3: 2, 4: 1})
    assert [facts.name for facts in sites.values()] == ["a", "b", "c"]
    assert observer.waited == [2, 1]


def test_they_are_waited_for_so_long_and_not_once_the_run_is_stopped(audit, watching):
    watching()
    hasty = replace(FEDERATION, approval_timeout_s=0.2)
    sites = _introduce(audit, {2: "a", 3: "b"}, waits={3: 10**6}, federation=hasty)
    assert [facts.name for facts in sites.values()] == ["a"]
    observer = watching(stop=True)
    assert len(_introduce(audit, {2: "a", 3: "b"}, waits={3: 10**6})) == 1
    assert observer.waited == [1]


def test_no_site_at_all_is_an_error_that_says_why(audit):
    with pytest.raises(QuorumNotMet, match="ConsentRefused, MalformedMessage"):
        _introduce(audit, {2: None, 3: ""})


def test_where_all_sites_refuse_that_is_what_the_error_says(audit):
    with pytest.raises(SitesRefused, match="All 2 sites refuse the run"):
        _introduce(audit, {2: None, 3: None})


def test_of_two_nodes_that_claim_one_name_neither_counts(audit):
    sites = _introduce(audit, {2: "a", 3: "b", 4: "a"})
    assert list(sites) == [3]
    with pytest.raises(QuorumNotMet, match="a: claimed by two nodes"):
        _introduce(audit, {2: "a", 4: "a"})
