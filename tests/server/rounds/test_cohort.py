"""Tests of who takes part."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from scipy import stats

from lepton_common.audit import AuditLog, read_records
from lepton_common.errors import QuorumNotMet, SitesRefused
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member
from lepton_common.messages import SiteFacts
from lepton_common.settings import MOST_LISTED, FederationSettings
from lepton_common.strict import to_json
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.cohort import Crowd, draw_nodes, meet, pick_cohort
from lepton_server.rounds.introduction import Introduction
from lepton_server.rounds.known import KnownSites


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


class Numbered(Sequence):
    """A million nodes, and which of them anybody looked at."""

    def __init__(self, count=10**6):
        self._nodes, self.looked_at = range(2, count + 2), []

    def __len__(self):
        return len(self._nodes)

    def __getitem__(self, place):
        self.looked_at.append(place)
        return self._nodes[place]


def test_a_draw_looks_at_the_nodes_that_it_draws_and_at_no_other():
    nodes = Numbered()
    drawn = draw_nodes(nodes, 50, seed=1, round_=1)
    assert len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert sorted(nodes.looked_at) == [node - 2 for node in drawn]
    assert draw_nodes(nodes, 50, seed=1, round_=1) == drawn
    assert draw_nodes(nodes, 50, seed=1, round_=2) != drawn
    assert draw_nodes(nodes, 50, seed=2, round_=1) != drawn


def test_all_nodes_are_drawn_where_all_are_asked_for():
    for count in (1, 2, 50):
        assert draw_nodes(range(count), count, seed=1, round_=1) == list(range(count))


def test_over_many_draws_every_node_and_every_pair_is_as_likely():
    singles, pairs = np.zeros(8), np.zeros((8, 8))
    for round_ in range(4000):
        drawn = draw_nodes(range(8), 3, seed=1, round_=round_)
        singles[drawn] += 1
        pairs[np.ix_(drawn, drawn)] += 1
    assert stats.chisquare(singles).pvalue > 1e-4
    assert stats.chisquare(pairs[np.triu_indices(8, 1)]).pvalue > 1e-4


class Answering:
    """A grid of many nodes, whose sites are called after them unless a test says otherwise."""

    def __init__(self, count=10**6):
        self.asked, self.facts = [], {}
        nodes = range(2, count + 2)

        class Nodes(dict):
            def __contains__(self, node):
                return node in nodes

            def __getitem__(self, node):
                return {}

            def keys(self):
                return nodes

        self.grid = InProcessGrid(self._answer, Nodes())

    def _answer(self, message, context):
        self.asked.append(context.node_id)
        facts = self.facts.get(context.node_id, _key_of(f"site-{context.node_id}"))
        if isinstance(facts, str):
            return Message(Error(100, facts), reply_to=message)
        content = RecordDict({"site": ConfigRecord({"json": to_json(facts)})})
        return Message(content, reply_to=message)


def _key_of(name, key="b"):
    return replace(_facts(f"{name}-0"), name=name, public_key=key * 64)


@pytest.fixture
def crowd(audit, make_settings):
    """Returns a crowd's grid, and the cohort of five that it is asked for in a round."""
    known, answering = KnownSites(), Answering()
    settings = make_settings({"sites": 10**6, "federation.cohort": 5})

    def cohort(round_, **options):
        introduction = Introduction(
            answering.grid, "run-1", settings.federation, audit, known=known, **options
        )
        found = Crowd(range(2, 10**6 + 2), introduction, settings).cohort(round_)
        known.read(audit.records[-1])
        return found

    answering.cohort = cohort
    answering.drawn = lambda round_: draw_nodes(range(2, 10**6 + 2), 5, settings.seed, round_)
    yield answering
    answering.grid.close()
    known.__exit__(None, None, None)


def test_of_a_crowd_only_those_of_the_round_are_asked(crowd, audit):
    found = crowd.cohort(7)
    assert sorted(crowd.asked) == crowd.drawn(7)
    assert sorted(found.sites) == crowd.drawn(7)
    assert [facts.name for facts in found.sites.values()] == sorted(
        f"site-{node}" for node in crowd.drawn(7)
    )
    assert found.failed == {}
    record = audit.records[-1]
    assert (record.kind, record.body["round"]) == ("introduced", 7)
    assert set(record.body["keys"]) == {f"site-{node}" for node in crowd.drawn(7)}
    assert set(crowd.cohort(7).sites) == set(found.sites)


def test_who_of_a_crowd_does_not_introduce_itself_is_named_with_its_error(crowd, audit):
    first, second, *others = crowd.drawn(1)
    crowd.facts = {first: "ConsentRefused", second: "SettingsError"}
    found = crowd.cohort(1)
    assert set(found.sites) == set(others)
    assert found.failed == {f"node-{first}": "ConsentRefused", f"node-{second}": "SettingsError"}
    assert audit.records[-1].body["failed"] == ["ConsentRefused", "SettingsError"]


def test_a_round_that_all_of_a_crowd_refuse_is_refused(crowd):
    crowd.facts = dict.fromkeys(crowd.drawn(1), "ConsentRefused")
    with pytest.raises(SitesRefused, match="All 5 sites refuse the run"):
        crowd.cohort(1)


def test_a_crowds_names_are_claimed_once_and_its_strangers_do_away_with_nobody(crowd):
    one, two, three, *_ = crowd.drawn(1)
    crowd.facts = {one: _key_of("a"), two: _key_of("a"), three: _key_of("c")}
    found = crowd.cohort(1)
    assert found.failed == {
        f"node-{one}": "a: claimed by two nodes",
        f"node-{two}": "a: claimed by two nodes",
    }
    later, other, *_ = crowd.drawn(2)
    crowd.facts = {later: _key_of("c", "d"), other: _key_of("c")}
    found = crowd.cohort(2)
    assert found.failed == {f"node-{later}": "c: came with another key before"}
    assert found.sites[other].name == "c"


def test_where_a_crowd_has_a_roster_nobody_else_counts(crowd):
    node, *_ = crowd.drawn(1)
    members = [Member(name=f"site-{node}", public_key="b" * 64)]
    found = crowd.cohort(1, members=members)
    assert list(found.sites) == [node]
    assert set(found.failed.values()) == {
        f"site-{other}: not in the roster" for other in crowd.drawn(1)[1:]
    }


@pytest.mark.parametrize("count", [MOST_LISTED, MOST_LISTED + 1])
def test_few_introduce_themselves_at_once_and_a_crowd_round_by_round(count, audit, make_settings):
    answering = Answering(count)
    settings = make_settings({"sites": count, "federation.cohort": 3})
    try:
        with KnownSites() as known:
            introduction = Introduction(answering.grid, "run-1", settings.federation, audit)
            present = meet(introduction, settings, known)
            assert present.count == count
            assert len(answering.asked) == (count if count == MOST_LISTED else 0)
            assert len(present.cohort(1).sites) == 3
            assert len(answering.asked) == (count if count == MOST_LISTED else 3)
    finally:
        answering.grid.close()


def test_a_crowd_is_in_one_order_however_its_nodes_are_listed(audit, make_settings):
    settings = make_settings({"sites": 5000, "federation.cohort": 3})

    drawn = []
    for order in (list(range(2, 5002)), list(range(5001, 1, -1)), set(range(2, 5002))):
        listing = Answering(5000)
        listing.grid.get_node_ids = lambda order=order: order
        try:
            with KnownSites() as known:
                introduction = Introduction(listing.grid, "run-1", settings.federation, audit)
                drawn.append(set(meet(introduction, settings, known).cohort(1).sites))
        finally:
            listing.grid.close()
    assert drawn[0] == drawn[1] == drawn[2]
