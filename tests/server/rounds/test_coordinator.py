"""The sum is exact or there is none: every ring, every pattern of dropouts, every altered byte."""

import functools
import itertools

import numpy as np
import pytest
from tests.support.sa1 import STAGES, Drive, make_signers, make_spec

from lepton_common.errors import (
    LeptonError,
    MalformedMessage,
    SecAggError,
    ShareMismatch,
    TooFewSites,
)
from lepton_common.secagg.encoding import idx
from lepton_common.secagg.messages import Signed, join_by_site, split_by_site
from lepton_server.rounds.coordinator import Coordinator

SIGNERS = make_signers(200)


def check(drive, boxes=None):
    """Runs a round, which must end in the exact sum or in TooFewSites; returns which."""
    try:
        total, weight = drive.run() if boxes is None else drive.finish(boxes)
    except TooFewSites:
        return False
    plain, plain_weight = drive.expected()
    assert np.array_equal(total, plain)
    assert weight == plain_weight
    assert len(drive.coordinator.survivors) >= drive.spec.min_survivors
    return True


@pytest.mark.parametrize("width", [16, 20, 24, 32])
@pytest.mark.parametrize(
    "sites", [2, 3, 4, 7, 16, *(pytest.param(n, marks=pytest.mark.slow) for n in (33, 50))]
)
def test_sums_are_exact(width, sites):
    weights = [0.01] if sites < 2 else [0.01, *np.linspace(0.1, 1, sites - 1)]
    spec = make_spec(SIGNERS[:sites], width=width, dimension=33)
    assert check(Drive(spec, SIGNERS[:sites], weights=weights))


@pytest.mark.slow
def test_two_hundred_sites_sum_exactly():
    spec = make_spec(SIGNERS, width=24)
    drops = dict(zip(range(3, 60, 5), itertools.cycle(STAGES), strict=False))
    assert check(Drive(spec, SIGNERS, drops=drops))


@pytest.mark.parametrize("width", [16, 20, 24, 32])
@pytest.mark.parametrize("length", [1, 2**20 - 1, 2**20, 2**20 + 7])
def test_odd_lengths_around_the_edges_of_a_lane_sum_exactly(width, length):
    # One element is the weight's; it may be the one behind the edge.
    spec = make_spec(SIGNERS[:3], width=width, dimension=length, weight_bits=0)
    assert check(Drive(spec, SIGNERS[:3]))


@pytest.mark.slow
def test_every_pattern_of_dropouts_among_five_sites():
    spec = make_spec(SIGNERS[:5], dimension=2)
    finished = 0

    @functools.cache
    def begun(early):
        drive = Drive(spec, SIGNERS[:5], drops=dict(early))
        try:
            return drive, drive.begin()
        except TooFewSites:
            return drive, None

    for pattern in itertools.product((*STAGES, None), repeat=5):
        drops = {i: stage for i, stage in enumerate(pattern, 1) if stage}
        early = tuple((i, stage) for i, stage in drops.items() if stage in STAGES[:2])
        before, boxes = begun(early)
        done = boxes is not None and check(before.fork(drops), boxes)
        # t = 4 of 5 tolerate one that stops, wherever.
        assert done == (len(drops) <= 1)
        finished += done
    assert finished == 1 + 5 * 5


@pytest.mark.parametrize(
    ("sites", "patterns"),
    [
        (10, 20),
        pytest.param(50, 2, marks=pytest.mark.slow),
        pytest.param(10, 200, marks=pytest.mark.slow),
        pytest.param(50, 5, marks=pytest.mark.slow),
    ],
)
def test_random_patterns_of_dropouts(sites, patterns):
    rng = np.random.default_rng(sites)
    spec, ends = make_spec(SIGNERS[:sites], width=20), set()
    for _ in range(patterns):
        count = rng.integers(0, sites - spec.threshold + 2)
        gone = rng.choice(np.arange(1, sites + 1), count, replace=False)
        drops = {int(i): STAGES[rng.integers(0, 5)] for i in gone}
        done = check(Drive(spec, SIGNERS[:sites], drops=drops))
        assert done == (count <= sites - spec.threshold)
        ends.add(done)
    # Both ends were met, or the test has not tried what it is about.
    assert ends == {True, False} or patterns < 20


def test_a_coordinator_restored_from_disk_finishes_with_the_same_sum():
    spec = make_spec(SIGNERS[:5], width=20, dimension=9)
    replies = {}

    def keep(stage, towards, index, data):
        if (stage, towards) == ("unmask", "server"):
            replies[index] = data
        return data

    drive = Drive(spec, SIGNERS[:5], drops={2: "mask"}, tamper=keep)
    kept = []
    ask = drive._ask
    drive._ask = lambda stage, *rest: (
        kept.append(drive.coordinator.to_bytes()) if stage == "unmask" else None,
        ask(stage, *rest),
    )
    total, weight = drive.run()
    again = Coordinator.from_bytes(kept[0])
    assert again.missing == sorted(replies)
    for index, reply in replies.items():
        again.take_unmasking(index, reply)
    assert again.missing == []
    total_again, weight_again = again.unmask()
    assert np.array_equal(total, total_again)
    assert weight == weight_again
    for cut in range(0, len(kept[0]), 97):
        with pytest.raises(LeptonError):
            Coordinator.from_bytes(kept[0][:cut])


_PLACES = [(s, "server") for s in (*STAGES, "vector")] + [(s, "site") for s in STAGES[1:]]


@pytest.mark.parametrize(("stage", "towards"), _PLACES)
def test_no_altered_byte_gets_through(stage, towards):
    spec = make_spec(SIGNERS[:4], dimension=3)
    seen = []
    Drive(
        spec,
        SIGNERS[:4],
        tamper=lambda s, to, i, data: (
            (seen.append(len(data)), data)[1] if (s, to, i) == (stage, towards, 2) else data
        ),
    ).run()
    length = seen[0]
    for place in range(0, length, max(1, length // 60)):

        def flip(s, to, i, data, place=place):
            if (s, to, i) != (stage, towards, 2):
                return data
            return data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]

        drive = Drive(spec, SIGNERS[:4], tamper=flip)
        assert check(drive)  # the other three are enough
        assert [index for _, index, _ in drive.refused] == [2]
        assert isinstance(drive.refused[0][2], SecAggError | MalformedMessage)


@pytest.mark.parametrize("liars", [1, 3])
def test_false_shares_from_a_few_are_survived(liars):
    spec = make_spec(SIGNERS[:10])

    def lie(stage, towards, index, data):
        if (stage, towards) != ("unmask", "server") or index > liars:
            return data
        body = Signed.from_bytes(data).body
        shares = {i: bytes(33) for i in split_by_site(body[2:], 33)}
        signer = SIGNERS[index - 1]
        false = body[:2] + join_by_site(shares)
        return Signed.make(signer, "unmask", spec, false).to_bytes()

    assert check(Drive(spec, SIGNERS[:10], tamper=lie))


def test_a_dealer_of_false_shares_is_named():
    spec = make_spec(SIGNERS[:5])
    drive = Drive(spec, SIGNERS[:5])
    deal = drive.parts[3]._deal
    drive.parts[3]._deal = lambda: {i: bytes(66) for i in deal()}
    with pytest.raises(ShareMismatch, match="site 3 "):
        drive.run()


@pytest.mark.parametrize(("sites", "liars"), [(20, (2,)), (20, (1, 2)), (50, (3, 7))])
def test_false_shares_of_a_few_holders_keep_no_sum_from_coming_out(sites, liars):
    signers = make_signers(sites)
    spec = make_spec(signers, dimension=4)

    def tamper(stage, towards, index, data):
        if (stage, towards) != ("unmask", "server") or index not in liars:
            return data
        released = split_by_site(Signed.from_bytes(data).body[2:], 33)
        body = idx(index) + join_by_site(dict.fromkeys(released, (1).to_bytes(33)))
        return Signed.make(signers[index - 1], "unmask", spec, body).to_bytes()

    drive = Drive(spec, signers, tamper=tamper)
    total, weight = drive.run()
    expected, whole = drive.expected()
    np.testing.assert_array_equal(total, expected)
    assert weight == whole
    assert drive.coordinator._false == set(liars)
