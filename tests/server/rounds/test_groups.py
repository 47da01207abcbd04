"""Rounds split into groups: robust strategies over sums, whoever fails, wherever it dies."""

import itertools

import numpy as np
import pytest
from crashes import Crash, die
from flwr.app import ConfigRecord, Message, RecordDict

from lepton_client.site import open_site
from lepton_common.audit import read_records
from lepton_common.errors import RoundLost, SettingsError, TooFewSites
from lepton_common.secagg.grouping import Draw
from lepton_common.secagg.messages import Signed
from lepton_common.settings import poisoned_tolerated
from lepton_common.stages import SecAggStage
from lepton_server.rounds import conversation
from lepton_server.rounds.journal import SumJournal
from lepton_server.strategies.catalog import Strategy

GROUPED = {
    "sites": 9,
    "rounds": 1,
    "secagg.groups": 3,
    "strategy.name": "fedmedian",
    "federation.quorum": 0.3,
}
QUICK = (SecAggStage.COMMIT, SecAggStage.MASK, SecAggStage.UNMASK)
# By default; single sums fail at every stage in test_secure_round.
FEW_BY_DEFAULT = [
    pytest.param(stage.value, marks=[] if stage in QUICK else pytest.mark.slow)
    for stage in SecAggStage
]


@pytest.fixture
def stepped(monkeypatch):
    """What strategies chose from, a list of vectors a round."""
    seen, step = [], Strategy.step

    def remembering(self, round_, model, mean):
        seen.append(mean.each())
        return step(self, round_, model, mean)

    monkeypatch.setattr(Strategy, "step", remembering)
    return seen


@pytest.fixture
def groupings(monkeypatch):
    """The groups of each round, as numbers of sites."""
    seen, keep = [], SumJournal.keep_grouping

    def remembering(self, grouping):
        named = [[int(name.removeprefix("site-")) for name, _ in g] for g in grouping.groups]
        seen.append(named)
        keep(self, grouping)

    monkeypatch.setattr(SumJournal, "keep_grouping", remembering)
    return seen


def means(updates, groups, without=()):
    return [np.mean([updates[i - 1] for i in g if i not in without], axis=0) for g in groups]


def single_updates(simulate, stepped):
    """Returns each site's update in the first round."""
    simulate("plain", {**GROUPED, "secagg.mode": "none", "secagg.groups": 1})
    return stepped.pop()


def assert_close(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-7)


def test_a_strategy_sees_one_mean_a_group_and_nothing_smaller(simulate, stepped, groupings):
    updates = single_updates(simulate, stepped)
    simulate(changes=GROUPED)
    (groups,), (found,) = groupings, stepped
    assert sorted(itertools.chain(*groups)) == list(range(1, 10))
    assert [len(g) for g in groups] == [3, 3, 3]
    assert_close(found, means(updates, groups))


def test_the_model_takes_the_median_of_the_groups(simulate, stepped, groupings):
    updates = single_updates(simulate, stepped)
    model = simulate(changes={**GROUPED, "rounds": 1})
    start = simulate.start()
    expected = start + np.median(means(updates, groupings[0]), axis=0)
    np.testing.assert_allclose(model, expected, rtol=0, atol=3e-7)


def test_groups_are_drawn_anew_each_round_and_attempts_count_upwards(simulate, groupings):
    simulate(changes={**GROUPED, "rounds": 4})
    assert len({str(groups) for groups in groupings}) > 1
    collected = [r for r in read_records(simulate.folder().audit) if r.kind == "collected"]
    specs = [spec for record in collected for spec in record.body["secagg"]]
    assert len(set(specs)) == 12
    assert all(record.body["failed"] == {} for record in collected)
    assert not list(simulate.folder().sums.glob("**/sum"))


@pytest.mark.parametrize("how", ["before", "after"])
@pytest.mark.parametrize("stage", FEW_BY_DEFAULT)
def test_a_site_that_fails_costs_its_own_update_at_most(simulate, stepped, groupings, stage, how):
    updates = single_updates(simulate, stepped)
    fails = lambda site, at: how if (site, at) == (4, stage) else None  # noqa: E731
    # Groups of four and five, which can do without one site; groups of three cannot.
    simulate(changes={**GROUPED, "secagg.groups": 2}, fails=fails)
    (groups,), (report,) = groupings, simulate.reports()
    in_the_sum = stage in ("sign", "unmask")
    assert report.failed == ({} if in_the_sum else {"site-4": "SiteBroke"})
    took_part = [1, 2, 3, 5, 6, 7, 8, 9] if stage in ("commit", "reveal") else list(range(1, 10))
    assert sorted(itertools.chain(*groups)) == took_part
    assert_close(stepped[0], means(updates, groups, without=() if in_the_sum else (4,)))


def test_a_group_that_fails_leaves_the_others(simulate, stepped, groupings):
    updates = single_updates(simulate, stepped)
    broken = []

    def fails(site, stage):
        if stage == "advertise" and groupings:
            broken[:] = groupings[-1][1]
        return "before" if site in broken[:2] and stage == "mask" else None

    simulate(changes={**GROUPED, "secagg.attempts": 1}, fails=fails)
    (groups,), (report,) = groupings, simulate.reports()
    assert set(report.failed) == {f"site-{i}" for i in groups[1]}
    assert set(report.failed.values()) == {"TooFewSites"}
    assert_close(stepped[0], means(updates, [groups[0], groups[2]]))


def test_too_few_groups_end_the_run_and_it_can_be_resumed(simulate, stepped, groupings):
    updates = single_updates(simulate, stepped)
    changes = {**GROUPED, "strategy.name": "fedtrimmedavg", "strategy.beta": 0.34}

    def fails(site, stage):
        return "before" if groupings and site == groupings[0][0][0] and stage == "mask" else None

    with pytest.raises(TooFewSites, match=r"Dropped out: site-\d \(SiteBroke\)"):
        simulate(changes=changes, fails=fails)
    asked = []
    simulate(changes=changes, fails=lambda site, at: asked.append((site, at)))
    assert_close(stepped[0], means(updates, groupings[0]))
    # The two groups that had come to a sum are not asked again, nor is anything drawn.
    again = {site for site, at in asked if at != "hello"}
    assert again == set(groupings[0][0])
    assert len(groupings) == 1


CRASHES = [("keep_grouping", 1), ("masking", 3), ("unmasking", 1), ("unmasked", 4)]
MORE_CRASHES = [("next_spec", 2), ("masking", 1), ("unmasking", 3), ("unmasked", 1),
                ("unmasked", 9), ("done", 1)]  # fmt: skip


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    ("method", "count"),
    [*CRASHES, *(pytest.param(*crash, marks=pytest.mark.slow) for crash in MORE_CRASHES)],
)
def test_a_server_killed_at_the_journal_goes_on_with_the_same_groups(
    simulate, stepped, groupings, monkeypatch, method, count, when
):
    updates = single_updates(simulate, stepped)
    with monkeypatch.context() as killing:
        die(killing, SumJournal, method, when, count)
        with pytest.raises(Crash):
            simulate(changes=GROUPED)
    stepped.clear()
    simulate(changes=GROUPED)
    if stepped:  # else the round was finished before
        assert_close(stepped[0], means(updates, groupings[-1]))
    (report,) = simulate.reports()
    assert report.failed == {}
    assert len({str(groups) for groups in groupings}) == 1


@pytest.mark.parametrize("stage", FEW_BY_DEFAULT)
def test_a_server_killed_in_the_middle_of_a_stage_ends_well(
    simulate, stepped, groupings, monkeypatch, stage
):
    updates = single_updates(simulate, stepped)
    collect = conversation.collect

    def dying(grid, contents, kind, timeout):
        for number, (node, answer) in enumerate(collect(grid, contents, kind, timeout)):
            if (next(iter(contents.values()))["secagg"]["stage"], number) == (stage, 4):
                raise Crash
            yield node, answer

    with monkeypatch.context() as killing:
        killing.setattr(conversation, "collect", dying)
        with pytest.raises(Crash):
            simulate(changes=GROUPED)
    simulate(changes=GROUPED)
    assert_close(stepped[0], means(updates, groupings[-1]))


def test_a_group_lost_for_good_is_named(simulate, groupings, monkeypatch):
    with monkeypatch.context() as killing:
        die(killing, SumJournal, "unmasked", "before", 1)
        with pytest.raises(Crash):
            simulate(changes={**GROUPED, "strategy.name": "fedtrimmedavg", "strategy.beta": 0.34})
    for path in simulate.folder().path.glob("sites/*/rounds/*"):
        path.unlink()
    with pytest.raises(RoundLost, match="start a new run with another seed"):
        simulate(changes={**GROUPED, "strategy.name": "fedtrimmedavg", "strategy.beta": 0.34})


def lying(stage, lie):
    """Returns how site 4 answers one stage of a draw with what it likes."""

    def answer(message, context):
        fields = message.content["secagg"]
        draw, key = Draw.from_bytes(fields["spec"]), open_site(str(context.node_config["site"])).key
        body = lie(draw, draw.index_of("site-4"), key, SecAggStage(fields["stage"]))
        record = ConfigRecord({"body": body, "head": "0" * 64})
        return Message(RecordDict({"secagg": record}), reply_to=message)

    return lambda site, at: answer if site == 4 and at in stage else None


def short_secret(draw, index, key, stage):
    if stage is SecAggStage.REVEAL:
        return b"short"
    return Signed.make(key, "commit-draw", draw, draw.commitment(index, b"short")).to_bytes()


def long_commitment(draw, index, key, stage):
    body = draw.commitment(index, b"s" * 32) + b"x"
    return Signed.make(key, "commit-draw", draw, body).to_bytes()


@pytest.mark.parametrize(
    ("stage", "lie"), [(("commit", "reveal"), short_secret), (("commit",), long_commitment)]
)
def test_who_lies_in_a_draw_is_named_and_left_out(simulate, groupings, stage, lie):
    """Else the others would refuse the groups, and be named in its place."""
    simulate(changes={**GROUPED, "secagg.groups": 2}, fails=lying(stage, lie))
    (report,) = simulate.reports()
    assert report.failed == {"site-4": "MalformedMessage"}
    assert 4 not in itertools.chain(*groupings[0])


def test_sites_that_withhold_their_secrets_one_after_another_end_nothing(simulate, groupings):
    """Each further draw only leaves a site out, so it is no new throw of the dice."""
    gone = []

    def fails(site, stage):
        if stage == "commit" and site in gone:
            return "before"
        if stage == "reveal" and site == 9 - len(gone) and site >= 6:
            gone.append(site)
            return "before"
        return None

    simulate(changes={**GROUPED, "secagg.groups": 2, "sites": 9}, fails=fails)
    (report,) = simulate.reports()
    assert set(report.failed) == {"site-6", "site-7", "site-8", "site-9"}
    assert sorted(itertools.chain(*groupings[0])) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("method", "count"), [("unmasking", 2), ("unmasked", 4), ("unmasked", 9)])
def test_sums_on_disk_are_finished_although_a_site_is_gone_at_the_resume(
    simulate, stepped, groupings, monkeypatch, method, count
):
    """Groups whose masking began are never drawn anew: the sites would refuse the new ones."""
    updates = single_updates(simulate, stepped)
    changes = {**GROUPED, "secagg.groups": 2}
    with monkeypatch.context() as killing:
        die(killing, SumJournal, method, "after", count)
        with pytest.raises(Crash):
            simulate(changes=changes)
    gone = lambda site, at: "before" if site == 7 else None  # noqa: E731
    simulate(changes=changes, fails=gone)
    assert len(groupings) == 1
    assert_close(stepped[0], means(updates, groupings[0]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"secagg.groups": 1}, "set secagg.groups to run it over sums of groups"),
        ({"strategy.name": "fedavg"}, "strategy=fedavg is linear"),
        ({"secagg.groups": 5}, "makes groups of 1 of 9 sites"),
        ({"secagg.colluders": 2}, "each group needs 4"),
        (
            {"strategy.name": "krum", "strategy.num_malicious_nodes": 1},
            "needs at least 5 sums to choose from, not 3",
        ),
    ],
)
def test_settings_that_groups_cannot_keep_are_refused(make_settings, changes, said):
    values = {"secagg.mode": "sa1", "secagg.colluders": 0, **GROUPED}
    with pytest.raises(SettingsError) as refused:
        make_settings({**values, **changes})
    assert len(refused.value.faults) == 1
    assert said in refused.value.faults[0]


@pytest.mark.parametrize(
    ("name", "changes", "groups", "held"),
    [
        ("fedmedian", {}, 3, 1),
        ("fedmedian", {}, 4, 1),
        ("fedmedian", {}, 9, 4),
        ("fedtrimmedavg", {"strategy.beta": 0.2}, 9, 1),
        ("krum", {"strategy.num_malicious_nodes": 2}, 9, 2),
        ("fedavg", {}, 9, 0),
    ],
)
def test_the_tolerance_is_that_of_the_strategy(make_settings, name, changes, groups, held):
    settings = make_settings({"strategy.name": name, **changes, "sites": 20})
    assert poisoned_tolerated(settings.strategy, groups) == held
