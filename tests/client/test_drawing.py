"""A site's part in the draw of groups: once against one set of commitments, and proven."""

import itertools
from dataclasses import replace

import pytest
from toy_federation import FEDERATION, Federation, masked_sum
from toy_site import ask, context

from lepton_client.app import app
from lepton_client.site import forget_sites
from lepton_common.secagg.grouping import Draw, Grouping
from lepton_common.secagg.messages import Signed, join_signed
from lepton_common.stages import SecAggStage, StageRequest, read_stage_reply, stage_content
from lepton_common.summing import run_id_of

ALL = list(range(1, 7))
COMMIT, REVEAL = SecAggStage.COMMIT, SecAggStage.REVEAL


@pytest.fixture
def federation(make_site):
    return Federation(make_site, count=6)


@pytest.fixture
def asked(federation):
    weights = {folder.name: 1 for folder in federation.folders}
    return federation.request(masked=masked_sum(weights, groups=2))


@pytest.fixture
def draw(federation, asked):
    return Draw(
        federation=FEDERATION,
        run_id=run_id_of(asked.run),
        round=asked.round,
        roster=tuple((m.name, bytes.fromhex(m.public_key)) for m in federation.roster.members),
        groups=2,
        model_hash=bytes.fromhex(asked.model_digest),
    )


def send(federation, index, stage, draw, body=b""):
    content = stage_content(StageRequest(stage, draw.to_bytes(), body))
    return app(ask(content), context(federation.folders[index - 1]))


def error(reply):
    return reply.error.reason if reply.has_error() else None


def commits_of(federation, draw, members=ALL):
    replies = {i: send(federation, i, COMMIT, draw) for i in members}
    return {i: Signed.from_bytes(read_stage_reply(r.content)) for i, r in replies.items()}


def drawn(federation, draw):
    """Returns the grouping that all sites take part in."""
    commits = commits_of(federation, draw)
    shown = join_signed(commits.values())
    secrets = {i: read_stage_reply(send(federation, i, REVEAL, draw, shown).content) for i in ALL}
    return Grouping(draw, commits, secrets)


def advertise(federation, asked, grouping, roster, evidence=None, **changes):
    """Returns how the first site of a cohort answers to a round of it."""
    spec = federation.spec(asked, roster=roster, **changes)
    index = int(roster[0][0].removeprefix("site-"))
    body = grouping.to_bytes() if evidence is None else evidence
    content = stage_content(StageRequest(SecAggStage.ADVERTISE, spec.to_bytes(), body), asked, None)
    return error(app(ask(content), context(federation.folders[index - 1])))


def test_a_group_sums_and_all_sites_agree_on_it(federation, asked, draw):
    grouping = Grouping.from_bytes(drawn(federation, draw).to_bytes())
    for group in grouping.groups:
        assert advertise(federation, asked, grouping, group) is None


def test_a_site_answers_the_same_again_and_after_a_restart(federation, draw):
    one = drawn(federation, draw)
    forget_sites()
    other = drawn(federation, draw)
    assert one == other
    assert len(set(one.secrets.values())) == 6


def test_no_other_cohort_than_a_drawn_group_is_accepted(federation, asked, draw):
    grouping = drawn(federation, draw)
    for roster in itertools.combinations(draw.roster, 3):
        expected = None if roster in grouping.groups else "PolicyViolation"
        assert advertise(federation, asked, grouping, roster, round=1) in (expected, "ReplayError")
    assert advertise(federation, asked, grouping, draw.roster, round=2) == "PolicyViolation"


@pytest.mark.parametrize(
    "changes",
    [{"round": 2}, {"groups": 3}, {"run_id": b"x" * 16}, {"model_hash": b"x" * 32}],
    ids=["round", "groups", "run", "model"],
)
def test_groups_drawn_for_another_round_are_refused(federation, asked, draw, changes):
    grouping = drawn(federation, replace(draw, **changes))
    found = advertise(federation, asked, grouping, grouping.groups[0])
    assert found == "PolicyViolation"


def test_a_round_of_groups_needs_the_draw_and_another_must_not_have_one(federation, asked, draw):
    grouping = drawn(federation, draw)
    group = grouping.groups[0]
    assert advertise(federation, asked, grouping, group, evidence=b"") == "MalformedMessage"
    single = replace(asked, masked=replace(asked.masked, groups=1))
    assert advertise(federation, single, grouping, draw.roster) == "PolicyViolation"


def test_a_draw_that_this_site_took_no_part_in_is_refused(federation, asked, draw):
    """Others cannot put a site into a group by a draw whose commitments it has not seen."""
    grouping = drawn(federation, draw)
    secret = b"\x07" * 32
    key = federation.open(6).key
    late = Signed.make(key, "commit-draw", draw, draw.commitment(6, secret))
    steered = Grouping(draw, {**grouping.commits, 6: late}, {**grouping.secrets, 6: secret})
    Grouping.from_bytes(steered.to_bytes())  # sound in itself
    group = next(g for g in steered.groups if g[0][0] == "site-1")
    assert advertise(federation, asked, steered, group) == "InconsistentView"


@pytest.mark.parametrize("restart", [False, True])
def test_a_secret_is_revealed_against_one_set_of_commitments_only(federation, draw, restart):
    """Else a colluder could commit anew, once it knows the secrets, and steer the draw."""
    commits = commits_of(federation, draw)
    shown = join_signed(commits.values())
    assert error(send(federation, 1, REVEAL, draw, shown)) is None
    if restart:
        forget_sites()
    key = federation.open(6).key
    late = Signed.make(key, "commit-draw", draw, draw.commitment(6, b"\x07" * 32))
    again = join_signed({**commits, 6: late}.values())
    assert error(send(federation, 1, REVEAL, draw, again)) == "ReplayError"
    assert error(send(federation, 1, REVEAL, draw, shown)) is None


def test_a_rounds_groups_are_drawn_a_few_times_only(federation, draw):
    """Each draw that is given up after the secrets are known is another throw of the dice."""
    found = []
    for left_out in range(2, 7):
        roster = tuple(e for e in draw.roster if e[0] != f"site-{left_out}")
        smaller = replace(draw, roster=roster)
        commits = {}
        for place, (name, _) in enumerate(roster, start=1):
            reply = send(federation, int(name[-1]), COMMIT, smaller)
            commits[place] = Signed.from_bytes(read_stage_reply(reply.content))
        shown = join_signed(commits.values())
        found.append(error(send(federation, 1, REVEAL, smaller, shown)))
    assert found == [None, None, None, "ReplayError", "ReplayError"]
    assert error(send(federation, 1, COMMIT, replace(draw, round=2))) is None


def test_a_missing_commitment_keeps_the_secrets_in(federation, draw):
    commits = commits_of(federation, draw)
    less = join_signed(commit for i, commit in commits.items() if i != 4)
    assert error(send(federation, 1, REVEAL, draw, less)) == "InconsistentView"


def test_strangers_and_other_federations_are_refused(federation, draw):
    stranger = (*draw.roster[:5], ("site-9", b"k" * 32))
    for other in (replace(draw, roster=stranger), replace(draw, federation="another")):
        assert error(send(federation, 1, COMMIT, other)) == "RosterMismatch"
    without = replace(draw, roster=draw.roster[1:])
    assert error(send(federation, 1, COMMIT, without)) == "RosterMismatch"


@pytest.mark.parametrize(
    ("rule", "said"), [("min_cohort: 4", "PolicyViolation"), ("colluders: 2", "PolicyViolation")]
)
def test_a_sites_floors_hold_in_each_group(federation, asked, draw, rule, said):
    grouping = drawn(federation, draw)
    group = grouping.groups[0]
    folder = federation.folders[int(group[0][0][-1]) - 1]
    path, name = folder / "site.yaml", rule.split(":")[0]
    lines = path.read_text().splitlines()
    changed = [f"  {rule}" if line.strip().startswith(f"{name}:") else line for line in lines]
    path.write_text("\n".join(changed))
    forget_sites()
    assert advertise(federation, asked, grouping, group) == said
