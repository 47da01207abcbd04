"""The draw of groups: what it proves, what steers it, and what every parser refuses."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sa1 import make_signers, make_spec
from scipy.stats import chisquare

from lepton_common.errors import (
    BadSignature,
    InconsistentView,
    LeptonError,
    MalformedMessage,
    PolicyViolation,
    RosterMismatch,
)
from lepton_common.secagg.encoding import lp
from lepton_common.secagg.grouping import Draw, Grouping, hash_commits, read_commits
from lepton_common.secagg.messages import Signed, join_signed

SIGNERS = make_signers(7)


def make_draw(sites=7, groups=3, **changes):
    roster = make_spec(SIGNERS[:sites]).roster
    draw = Draw("fed", b"R" * 16, 4, roster, groups, b"M" * 32)
    return replace(draw, **changes)


def make_grouping(draw, secrets=None):
    secrets = secrets or {i: bytes([i]) * 32 for i in range(1, len(draw.roster) + 1)}
    commits = {
        i: Signed.make(SIGNERS[i - 1], "commit-draw", draw, draw.commitment(i, secret))
        for i, secret in secrets.items()
    }
    return Grouping(draw, commits, secrets)


@pytest.mark.parametrize(("sites", "groups"), [(4, 2), (5, 2), (6, 3), (7, 2), (7, 3)])
def test_groups_part_the_cohort_evenly(sites, groups):
    grouping = make_grouping(make_draw(sites, groups))
    assert sorted(itertools.chain(*grouping.groups)) == list(grouping.draw.roster)
    sizes = [len(group) for group in grouping.groups]
    assert len(sizes) == groups
    assert max(sizes) - min(sizes) <= 1
    assert all(list(group) == sorted(group) for group in grouping.groups)


def test_a_grouping_survives_its_encoding():
    grouping = make_grouping(make_draw())
    found = Grouping.from_bytes(grouping.to_bytes())
    assert found.groups == grouping.groups
    assert found.draw == grouping.draw
    assert hash_commits(found.commits) == hash_commits(grouping.commits)


def test_every_split_comes_equally_often():
    """Of four sites into two groups, there are three splits."""
    draw, counts = make_draw(4, 2), {}
    for trial in range(900):
        secrets = {i: bytes([i]) + trial.to_bytes(31) for i in range(1, 5)}
        split = frozenset(Grouping(draw, {}, secrets).groups)
        counts[split] = counts.get(split, 0) + 1
    assert len(counts) == 3
    assert chisquare(list(counts.values())).pvalue > 0.001


@pytest.mark.parametrize("site", range(1, 8))
def test_each_single_secret_changes_the_groups(site):
    draw = make_draw()
    plain = {i: bytes([i]) * 32 for i in range(1, 8)}
    splits = {
        Grouping(draw, {}, {**plain, site: bytes([site, trial]) + bytes(30)}).groups
        for trial in range(20)
    }
    assert len(splits) > 10


def test_another_secret_than_promised_is_refused():
    grouping = make_grouping(make_draw())
    changed = replace(grouping, secrets={**grouping.secrets, 3: b"x" * 32})
    with pytest.raises(InconsistentView, match="Site 3 revealed another secret"):
        Grouping.from_bytes(changed.to_bytes())


@pytest.mark.parametrize("part", ["commits", "secrets"])
def test_no_site_can_be_left_out(part):
    grouping = make_grouping(make_draw())
    less = {i: value for i, value in getattr(grouping, part).items() if i != 2}
    with pytest.raises(InconsistentView, match="lacks a site"):
        Grouping.from_bytes(replace(grouping, **{part: less}).to_bytes())


def test_a_commitment_counts_for_its_own_draw_and_site_only():
    draw, other = make_draw(), make_draw(round=5)
    grouping, foreign = make_grouping(draw), make_grouping(other)
    mixed = {**grouping.commits, 3: foreign.commits[3]}
    with pytest.raises(BadSignature, match="site 3"):
        read_commits(draw, join_signed(mixed.values()))
    forged = Signed.make(SIGNERS[0], "commit-draw", draw, draw.commitment(3, b"x" * 32))
    with pytest.raises(BadSignature, match="site 3"):
        read_commits(draw, join_signed({**grouping.commits, 3: forged}.values()))
    stranger = Signed.make(SIGNERS[0], "commit-draw", draw, b"\x00\x08" + bytes(32))
    with pytest.raises((RosterMismatch, InconsistentView)):
        read_commits(draw, join_signed({**grouping.commits, 7: stranger}.values()))


@pytest.mark.parametrize("groups", [0, 1, 4])
def test_a_draw_has_groups_of_two_sites_and_more(groups):
    with pytest.raises(PolicyViolation):
        Draw.from_bytes(make_draw(groups=groups).to_bytes())


def test_a_draws_sites_are_in_order_and_once():
    draw = make_draw()
    for roster in (draw.roster[::-1], draw.roster[:1] + draw.roster):
        with pytest.raises(PolicyViolation):
            Draw.from_bytes(replace(draw, roster=roster).to_bytes())


@pytest.mark.parametrize("position", range(0, 1200, 7))
def test_any_altered_byte_is_refused(position):
    data = bytearray(make_grouping(make_draw()).to_bytes())
    data[position % len(data)] ^= 1
    with pytest.raises(LeptonError):
        Grouping.from_bytes(bytes(data))


@given(st.binary(max_size=200))
def test_noise_is_refused_by_name(data):
    for parse in (Draw.from_bytes, Grouping.from_bytes, lambda d: read_commits(make_draw(), d)):
        with pytest.raises(LeptonError):
            parse(data)
    with pytest.raises(LeptonError):
        Grouping.from_bytes(lp(make_draw().to_bytes(), data, data))


def test_what_goes_on_after_its_end_is_refused():
    for value in (make_draw(), make_grouping(make_draw())):
        with pytest.raises(MalformedMessage):
            type(value).from_bytes(value.to_bytes() + lp(b""))
