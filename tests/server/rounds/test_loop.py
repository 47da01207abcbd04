"""Tests of the round loop with sites that only pretend to train."""

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from lepton_common.arrays import pack
from lepton_common.audit import read_records
from lepton_common.errors import RunNotResumable, SitesRefused
from lepton_common.messages import HELLO, Receipt, SiteFacts, read_train
from lepton_common.strict import to_json
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.rounds.loop import run_rounds
from lepton_server.rounds.refusal import refusal
from lepton_server.run_folder import RunFolder


@pytest.fixture
def run(tmp_path, make_settings):
    """Runs a federation of three sites; returns the cohort sizes that each request named."""

    def start(settings, absent=(), failing=()):
        cohorts = []

        def app(message, context):
            node = context.node_id
            head = f"{node:064x}"
            hello = message.metadata.message_type == HELLO
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

        grid = InProcessGrid(app, {2: {}, 3: {}, 4: {}})
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
    found = refusal(2, {"a": "ConsentRefused", "b": "BudgetSpent"})
    assert found.exit_code == 4
    assert "Round 2" in str(found)


def test_weights_that_all_sites_have_used_ask_for_another_seed():
    spent = {"a": "UpdateAlreadySpent", "b": "UpdateAlreadySpent"}
    assert "another seed" in str(refusal(1, spent))
    assert refusal(2, spent) is None  # there it is about a retry
    assert refusal(1, spent | {"c": "TimedOut"}) is None
