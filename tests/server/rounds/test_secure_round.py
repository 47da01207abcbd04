"""A whole secure round at the server: same model as in clear, whoever fails, wherever it dies."""

import json

import numpy as np
import pytest
from crashes import Crash, assert_same, die
from flwr.app import ConfigRecord

from lepton_client.app import app as client_app
from lepton_common.audit import read_records
from lepton_common.errors import QuorumNotMet, RoundLost, SettingsError, TooFewSites
from lepton_common.settings import LINEAR, ROBUST
from lepton_common.stages import DRAWING, SecAggStage
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.rounds import conversation, loop
from lepton_server.rounds.journal import SumJournal

STAGES = [stage.value for stage in SecAggStage if stage not in DRAWING]


@pytest.mark.parametrize("kind", [InProcessGrid, SerialisingGrid])
@pytest.mark.parametrize("weights", ["equal", "public_size"])
def test_secure_and_plain_runs_give_the_same_model(simulate, in_clear, kind, weights):
    changes = {"federation.weights": weights}
    assert_same(simulate(changes=changes, kind=kind), in_clear(changes))


@pytest.mark.parametrize("width", [16, 20, 24])
def test_narrower_rings_give_the_same_model_up_to_their_rounding(simulate, in_clear, width):
    assert_same(simulate(changes={"secagg.width": width}), in_clear(), width)


def test_sites_that_count_by_masked_records_give_their_weighted_mean(simulate, in_clear):
    changes = {"rounds": 1, "federation.weights": "masked_size"}
    masked = simulate(changes=changes)
    # Of equal sites nothing would be learnt, and these differ by the partition.
    assert np.abs(masked - in_clear({"rounds": 1})).max() > 1e-3
    by_class = simulate("by-class", {"rounds": 1, "federation.weights": "public_size"})
    assert np.abs(masked - by_class).max() < 0.1 * np.abs(masked).max()


@pytest.mark.slow
def test_a_run_of_few_rotated_coordinates_learns(simulate):
    changes = {
        "rounds": 12,
        "secagg.compression": "random_coordinates",
        "secagg.coordinates": 0.3,
        "secagg.rotate": True,
        "secagg.width": 16,
        "secagg.rounding": "stochastic",
        "secagg.clip": 0.5,
    }
    simulate(changes=changes)
    losses = [report.metrics["train_loss"] for report in simulate.reports()]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("strategy", ["fedadam", "fedavgm"])
def test_linear_strategies_step_alike(simulate, in_clear, strategy):
    changes = {"strategy.name": strategy, "strategy.tau": 0.1, "strategy.server_momentum": 0.9}
    assert_same(simulate(changes=changes), in_clear(changes))


def test_the_mean_of_the_training_losses_comes_out_of_the_sum(simulate):
    simulate()
    losses = [report.metrics["train_loss"] for report in simulate.reports()]
    assert 0 < losses[1] < losses[0] < 1


def test_a_low_clip_does_not_cut_the_metrics(simulate):
    simulate(changes={"rounds": 1})
    simulate("clipped", {"rounds": 1, "secagg.clip": 0.01})
    (report,), (clipped,) = simulate.reports(), simulate.reports("clipped")
    assert clipped.metrics["train_loss"] == pytest.approx(report.metrics["train_loss"], abs=1e-6)
    assert clipped.metrics["train_loss"] > 0.1


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_site_that_fails_at_a_stage_costs_at_most_its_own_update(simulate, in_clear, stage, how):
    """Before: it never answers. After: its answer is lost on the way."""
    changes = {"rounds": 1}
    model = simulate(
        changes=changes, fails=lambda site, at: how if (site, at) == (4, stage) else None
    )
    in_the_sum = stage in ("sign", "unmask")
    assert_same(model, in_clear(changes, without=() if in_the_sum else [(4, "mask")]))
    (report,) = simulate.reports()
    assert report.failed == ({} if in_the_sum else {"site-4": "SiteBroke"})


@pytest.mark.parametrize("stage", ["sign", "unmask"])
def test_a_site_whose_update_is_in_the_sum_counts_for_the_quorum(simulate, in_clear, stage):
    changes = {"rounds": 1, "federation.quorum": 1.0}
    model = simulate(
        changes=changes, fails=lambda site, at: "before" if (site, at) == (2, stage) else None
    )
    assert_same(model, in_clear({"rounds": 1}))


@pytest.mark.parametrize("stage", STAGES[:3])
def test_too_few_sites_are_named_and_when_they_are_back_the_round_is_repeated(
    simulate, in_clear, stage
):
    changes = {"rounds": 1}
    with pytest.raises(TooFewSites, match=r"site-1 \(SiteBroke\).* resume when they are back"):
        simulate(
            changes=changes, fails=lambda site, at: "after" if site <= 3 and at == stage else None
        )
    assert_same(simulate(changes=changes), in_clear(changes))


def test_too_few_signatures_are_repeated_by_the_rule(simulate, in_clear):
    changes = {"rounds": 1}
    with pytest.raises(TooFewSites, match="2 sites signed and 3 are needed"):
        simulate(
            changes=changes, fails=lambda site, at: "after" if site <= 3 and at == "sign" else None
        )
    assert_same(simulate(changes=changes), in_clear(changes))


@pytest.mark.parametrize("stage", STAGES[:4])
def test_a_passing_failure_is_survived_by_a_second_attempt(simulate, in_clear, stage):
    failed = set()

    def once(site, at):
        if at != stage or site > 3 or site in failed:
            return None
        failed.add(site)
        return "after"

    changes = {"rounds": 1}
    assert_same(simulate(changes=changes, fails=once), in_clear(changes))
    assert failed == {1, 2, 3}


def test_lost_unmasking_answers_are_asked_for_again(simulate, in_clear):
    changes = {"rounds": 1, "secagg.attempts": 1}
    with pytest.raises((TooFewSites, RoundLost)):
        simulate(
            changes=changes,
            fails=lambda site, at: "after" if site <= 3 and at == "unmask" else None,
        )
    assert_same(simulate(changes=changes), in_clear(changes))


def test_before_a_retry_the_missing_answers_are_asked_for_again(simulate, in_clear):
    changes = {"rounds": 1}
    unmasking = []

    def fails(site, at):
        unmasking.append(site) if at == "unmask" else None
        return "before" if site <= 3 and at == "unmask" and len(unmasking) <= 5 else None

    assert_same(simulate(changes=changes, fails=fails), in_clear(changes))
    (report,) = simulate.reports()
    assert report.failed == {}


def test_a_retry_leaves_out_and_names_the_sites_that_have_unmasked(simulate, in_clear):
    changes = {"rounds": 1}
    unmasking = []

    def fails(site, at):
        unmasking.append(site) if at == "unmask" else None
        # In the first attempt, sites 4 and 5 unmask; the others fail again when they are asked
        # once more, and take part in the second attempt.
        return "before" if site <= 3 and at == "unmask" and len(unmasking) <= 5 + 3 else None

    model = simulate(changes=changes, fails=fails)
    assert_same(model, in_clear(changes, without=[(4, "mask"), (5, "mask")]))
    (report,) = simulate.reports()
    assert report.failed == dict.fromkeys(("site-4", "site-5"), "UpdateAlreadySpent")


JOURNAL = [("next_spec", 1), ("masking", 1), ("unmasking", 1), ("unmasked", 2), ("done", 1)]
MORE_OF_IT = [("unmasked", 1), ("unmasked", 3), ("unmasked", 5), ("unmasking", 2), ("done", 2)]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("method", "count"),
    [*JOURNAL, *(pytest.param(*crash, marks=pytest.mark.slow) for crash in MORE_OF_IT)],
)
def test_a_server_killed_at_the_journal_ends_in_the_same_model(
    simulate, in_clear, monkeypatch, method, count, when
):
    expected = in_clear()
    with monkeypatch.context() as killing:
        die(killing, SumJournal, method, when, count)
        with pytest.raises(Crash):
            simulate()
    assert_same(simulate(), expected)
    assert [report.round for report in simulate.reports()] == [1, 2]
    assert all(report.failed == {} for report in simulate.reports())


@pytest.mark.parametrize("method", ["save_checkpoint", "make_strategy"])
def test_a_server_killed_after_the_sum_finishes_it_from_disk(
    simulate, in_clear, monkeypatch, method
):
    asked = []
    with monkeypatch.context() as killing:
        die(killing, loop, method, "before")
        with pytest.raises(Crash):
            simulate(changes={"rounds": 1})
    fails = lambda site, at: asked.append(at)  # noqa: E731
    model = simulate(changes={"rounds": 1}, fails=fails)
    assert_same(model, in_clear({"rounds": 1}))
    if method != "make_strategy":
        assert set(asked) == {"hello"}


@pytest.mark.parametrize("stage", STAGES)
def test_a_server_killed_in_the_middle_of_a_stage_ends_in_the_same_model(
    simulate, in_clear, monkeypatch, stage
):
    collect = conversation.collect

    def dying(grid, contents, kind, timeout):
        for number, (node, answer) in enumerate(collect(grid, contents, kind, timeout)):
            name = next(iter(contents.values()))["secagg"]["stage"]
            if (name, number) == (stage, 2):
                raise Crash
            yield node, answer

    with monkeypatch.context() as killing:
        killing.setattr(conversation, "collect", dying)
        with pytest.raises(Crash):
            simulate(changes={"rounds": 1})
    assert_same(simulate(changes={"rounds": 1}), in_clear({"rounds": 1}))


def test_who_dropped_out_is_known_after_a_crash_too(simulate, monkeypatch):
    broken = lambda site, at: "before" if (site, at) == (5, "mask") else None  # noqa: E731
    with monkeypatch.context() as killing:
        die(killing, loop, "save_checkpoint", "before")
        with pytest.raises(Crash):
            simulate(changes={"rounds": 1}, fails=broken)
    simulate(changes={"rounds": 1})
    (report,) = simulate.reports()
    assert report.failed == {"site-5": "SiteBroke"}


def test_a_quorum_that_fails_leaves_the_round_to_be_repeated(simulate, in_clear):
    """It is checked before anything is unmasked, or no resumed run could ever pass it."""
    broken = lambda site, at: "before" if (site, at) == (5, "mask") else None  # noqa: E731
    changes = {"rounds": 1, "federation.quorum": 1.0}
    with pytest.raises(TooFewSites, match=r"site-5 \(SiteBroke\)"):
        simulate(changes=changes, fails=broken)
    assert_same(simulate(changes=changes), in_clear(changes))


def test_a_round_that_moves_nothing_ends_the_run_by_name(simulate):
    """A site lets an update on one model go once, so the same model cannot be trained on again."""
    with pytest.raises(TooFewSites, match=r"site-1 \(UpdateAlreadySpent\)"):
        simulate(changes={"train.learning_rate": 1e-30})
    assert [report.round for report in simulate.reports()] == [1]


def test_a_reply_torn_by_the_crash_is_asked_for_again(simulate, in_clear, monkeypatch):
    with monkeypatch.context() as killing:
        die(killing, SumJournal, "unmasked", "after", 4)
        with pytest.raises(Crash):
            simulate(changes={"rounds": 1})
    path = simulate.folder().sums / "replies"
    path.write_bytes(path.read_bytes()[:-7])
    assert_same(simulate(changes={"rounds": 1}), in_clear({"rounds": 1}))


def test_a_sum_on_disk_is_finished_although_a_site_is_gone_at_the_resume(
    simulate, in_clear, monkeypatch
):
    with monkeypatch.context() as killing:
        die(killing, SumJournal, "unmasking", "after")
        with pytest.raises(Crash):
            simulate(changes={"rounds": 1})
    gone = lambda site, at: "before" if site == 5 else None  # noqa: E731
    assert_same(simulate(changes={"rounds": 1}, fails=gone), in_clear({"rounds": 1}))


def test_a_stranger_is_left_out_before_the_sites_refuse_it(simulate, in_clear):
    def renamed(message, context):
        reply = client_app(message, context)
        facts = json.loads(reply.content["site"]["json"]) | {"name": "nobody"}
        reply.content["site"] = ConfigRecord({"json": json.dumps(facts, separators=(",", ":"))})
        return reply

    model = simulate(
        changes={"rounds": 1}, fails=lambda s, at: renamed if (s, at) == (5, "hello") else None
    )
    assert_same(model, in_clear({"rounds": 1}, without=[(5, "mask")]))
    introduced = [r for r in read_records(simulate.folder().audit) if r.kind == "introduced"]
    assert introduced[0].body["failed"] == ["nobody: not in the roster"]


def test_two_crashes_in_a_row_while_replies_come_in(simulate, in_clear, monkeypatch):
    for count in (2, 1):
        with monkeypatch.context() as killing:
            die(killing, SumJournal, "unmasked", "after", count)
            with pytest.raises(Crash):
                simulate(changes={"rounds": 1})
        path = simulate.folder().sums / "replies"
        path.write_bytes(path.read_bytes()[:-7])
    assert_same(simulate(changes={"rounds": 1}), in_clear({"rounds": 1}))


def test_where_sites_lost_their_answers_too_the_round_is_lost_by_name(simulate, monkeypatch):
    collect = conversation.collect
    with monkeypatch.context() as killing:
        killing.setattr(conversation, "collect", lambda *asked: iter(list(collect(*asked))))
        die(killing, SumJournal, "unmasked", "before", 1)
        with pytest.raises(Crash):
            simulate()
    for path in simulate.folder().path.glob("sites/*/rounds/*"):
        path.unlink()
    for _ in range(2):
        with pytest.raises(RoundLost, match="start a new run with another seed"):
            simulate()


def test_the_log_witnesses_the_round_under_its_specification(simulate):
    simulate()
    collected = [r for r in read_records(simulate.folder().audit) if r.kind == "collected"]
    specs = [record.body["secagg"] for record in collected]
    assert len({tuple(spec) for spec in specs}) == 2
    site = simulate.folder().site("site-1") / "audit.jsonl"
    hashes = {record.hash: record.body for record in read_records(site)}
    for record in collected:
        last = hashes[record.body["heads"]["site-1"]]
        assert last["spec"] in record.body["secagg"]
        assert last["stage"] == "UNMASKED"


def test_with_privacy_the_sum_is_made_and_charged_once_a_round(simulate):
    changes = {"privacy.mode": "record", "privacy.epsilon": 3.0, "privacy.delta": 1e-5,
               "train.local_epochs": None, "train.local_steps": 1}  # fmt: skip
    simulate(changes=changes)
    reports = simulate.reports()
    assert set(reports[1].epsilon) == {f"site-{i}" for i in range(1, 6)}
    assert 2.9 < max(reports[1].epsilon.values()) <= 3.0
    assert "train_loss" not in reports[1].metrics


@pytest.mark.parametrize("strategy", ROBUST)
def test_strategies_that_need_single_updates_are_refused_with_the_reason(make_settings, strategy):
    changes = {"secagg.mode": "sa1", "strategy.name": strategy, "sites": 20}
    with pytest.raises(SettingsError, match="needs single updates, which secure aggregation hides"):
        make_settings(changes)
    make_settings({**changes, "secagg.mode": "none"})


@pytest.mark.parametrize("strategy", LINEAR)
def test_linear_strategies_are_offered(make_settings, strategy):
    assert make_settings({"secagg.mode": "sa1", "strategy.name": strategy}).secure


def test_fewer_sites_than_a_sum_needs_are_no_round_that_sites_would_refuse(simulate):
    def few(site, stage):
        return "before" if stage == "hello" and site > 2 else None

    with pytest.raises(QuorumNotMet, match="2 of the 3 sites are there"):
        simulate(changes={"secagg.colluders": 1}, fails=few)
    assert len(simulate(changes={"secagg.colluders": 1})) > 0


def test_a_cohort_too_small_for_its_colluders_is_refused(make_settings):
    with pytest.raises(SettingsError, match="tolerates 2 colluding sites"):
        make_settings({"secagg.mode": "sa1", "secagg.colluders": 2, "sites": 3})
