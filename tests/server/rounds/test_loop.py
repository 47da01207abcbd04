"""Tests of the round loop with sites that only pretend to train."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from lepton_common.arrays import pack
from lepton_common.audit import read_records
from lepton_common.errors import QuietHours, RunNotResumable, SitesRefused
from lepton_common.messages import HELLO, Receipt, SiteFacts, read_train
from lepton_common.strict import to_json
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.rounds.cohort import draw_nodes
from lepton_server.rounds.loop import run_rounds
from lepton_server.rounds.refusal import refusal
from lepton_server.run_folder import RunFolder


@pytest.fixture
def run(tmp_path, make_settings):
    """Runs a federation of three sites; returns the cohort sizes that each request named."""

    def start(settings, absent=(), failing=(), nodes=None, hellos=None):
        cohorts = []

        def app(message, context):
            node = context.node_id
            head = f"{node:064x}"
            hello = message.metadata.message_type == HELLO
            if hello and hellos is not None:
                hellos.append(node)
            if node in absent or (node in failing and not hello):
                return Message(Error(100, "ConsentRefused"), reply_to=message)
            if hello:
                facts = SiteFacts(
                    name=f"s{node}", public_key=head, public_size=8, unit="row", audit_head=head
                )
                site = ConfigRecord({"json": to_json(facts)})
                return Message(RecordDict({"site": site}), reply_to=message)
            request = read_train(message.content)
            cohorts.append(request.cohort)
            receipt = Receipt(
                run=request.run, round=request.round, plan=None, steps=0, epsilon=0.0,
                audit_head=head, ledger_head=head,
            )  # fmt: skip
            content = RecordDict(
                {
                    "update": ArrayRecord({"vector": pack(np.full(650, 0.01, np.float32))}),
                    "metrics": MetricRecord(),
                    "receipt": ConfigRecord({"json": to_json(receipt)}),
                }
            )
            return Message(content, reply_to=message)

        grid = InProcessGrid(app, nodes or {2: {}, 3: {}, 4: {}})
        try:
            run_rounds(grid, make_settings(settings), RunFolder(tmp_path))
        finally:
            grid.close()
        return cohorts

    return start


def test_every_round_is_reported_and_done_once(run, tmp_path):
    assert run({"sites": 3, "rounds": 2}) == [3] * 6
    assert run({"sites": 3, "rounds": 2}) == []
    reports = list(RunFolder(tmp_path).reports())
    assert [report.round for report in reports] == [1, 2]
    assert all(report.failed == {} for report in reports)


def test_a_run_is_not_continued_under_another_configuration(run):
    run({"sites": 3, "rounds": 1})
    with pytest.raises(RunNotResumable, match="not the one this run began with"):
        run({"sites": 3, "rounds": 2})


def test_heads_are_witnessed_even_of_a_round_that_fails(run, tmp_path):
    with pytest.raises(SitesRefused):
        run({"sites": 3, "rounds": 1, "federation.quorum": 1.0}, failing=(2,))
    collected = [r for r in read_records(RunFolder(tmp_path).audit) if r.kind == "collected"]
    assert set(collected[0].body["heads"]) == {"s3", "s4"}


def test_a_request_names_the_number_of_sites_that_are_really_asked(run):
    # A site's policy has a smallest cohort; it can only judge what the request says.
    assert run({"sites": 3, "rounds": 1}, absent=(4,)) == [2, 2]


def test_a_failing_site_is_reported_by_name(run, tmp_path):
    run({"sites": 3, "rounds": 1}, failing=(3,))
    (report,) = RunFolder(tmp_path).reports()
    assert report.failed == {"s3": "ConsentRefused"}


def test_too_few_answers_end_the_run(run):
    with pytest.raises(SitesRefused, match=r"s2 \(ConsentRefused\), s3 \(ConsentRefused\)"):
        run({"sites": 3, "rounds": 1}, failing=(2, 3))


def test_only_refusals_are_taken_for_one():
    assert refusal(1, {}) is None
    assert refusal(1, {"a": "ConsentRefused", "b": "TimedOut"}) is None
    assert refusal(1, {"a": "ConsentRefused", "b": QuietHours.__name__}) is None  # they pass
    found = refusal(2, {"a": "ConsentRefused", "b": "BudgetSpent"})
    assert found.exit_code == 4
    assert "Round 2" in str(found)


def test_weights_that_all_sites_have_used_ask_for_another_seed():
    spent = {"a": "UpdateAlreadySpent", "b": "UpdateAlreadySpent"}
    assert "another seed" in str(refusal(1, spent))
    assert refusal(2, spent) is None  # there it is about a retry
    assert refusal(1, spent | {"c": "TimedOut"}) is None


_CROWD = {node: {} for node in range(2, 5002)}


def test_of_a_crowd_each_round_introduces_and_asks_its_own(run, tmp_path):
    hellos = []
    changes = {"sites": 5000, "rounds": 3, "federation.cohort": 4}
    assert run(changes, nodes=_CROWD, hellos=hellos) == [4] * 12
    assert len(hellos) == 12
    records = list(read_records(RunFolder(tmp_path).audit))
    introduced = [r.body for r in records if r.kind == "introduced"]
    collected = [r.body for r in records if r.kind == "collected"]
    assert [body["round"] for body in introduced] == [1, 2, 3]
    assert [set(body["keys"]) for body in introduced] == [set(b["heads"]) for b in collected]


def test_who_of_a_crowd_is_absent_has_failed_in_that_round(run, tmp_path):
    changes = {"sites": 5000, "rounds": 1, "federation.cohort": 4}
    first = draw_nodes(sorted(_CROWD), 4, seed=1, round_=1)[0]
    assert run(changes, absent=(first,), nodes=_CROWD) == [3] * 3
    (report,) = RunFolder(tmp_path).reports()
    assert report.failed == {f"node-{first}": "ConsentRefused"}


def test_too_many_absent_end_a_crowds_round_as_failures_do(run):
    changes = {"sites": 5000, "rounds": 1, "federation.cohort": 4}
    absent = draw_nodes(sorted(_CROWD), 4, seed=1, round_=1)[:3]
    with pytest.raises(SitesRefused, match=f"node-{absent[0]} .ConsentRefused."):
        run(changes, absent=absent, nodes=_CROWD)


def test_a_crowds_run_that_ended_in_a_round_goes_on_with_the_same_sites(run):
    changes = {"sites": 5000, "rounds": 2, "federation.cohort": 4}
    drawn = draw_nodes(sorted(_CROWD), 4, seed=1, round_=2)
    before, after = [], []
    with pytest.raises(SitesRefused):
        run(changes, failing=drawn, nodes=_CROWD, hellos=before)
    assert run(changes, nodes=_CROWD, hellos=after) == [4] * 4
    assert sorted(before[4:]) == sorted(after) == drawn
