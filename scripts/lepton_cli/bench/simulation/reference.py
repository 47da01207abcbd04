"""The rows of the reference job: engines, protections, limits and peers."""

import statistics
from collections.abc import Iterator
from pathlib import Path

from lepton_cli.bench import Row, peers
from lepton_cli.bench.simulation.jobs import REFERENCE, data_of
from lepton_cli.bench.simulation.limits import bytes_of_client, flops_of_client
from lepton_cli.bench.simulation.rows import bare, compared, multiple, seconds
from lepton_cli.bench.simulation.side import own_side
from lepton_cli.bench.simulation.sides import Outcome, Side, from_cold, say, take_turns
from lepton_common.errors import RunError

_QUICK_S, _FIRST, _COLD_TIMES = 12.0, 3, 3
_BF16, _BF16_LABEL = "train.precision=bfloat16", "bf16 against float32"


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields the rows of the reference job."""
    with data_of(REFERENCE) as data:
        yield from _engines(data, quick)
        if not quick:
            yield from _bf16(data)
            yield from _ray(data)
            yield from _protections(data)
        if with_peers:
            for peer in peers.PEERS:
                yield from _peer(data, peer, quick)


def _ours(data: Path, name: str, *overrides: str) -> Side:
    return own_side(name, "federation", REFERENCE, data, *overrides)


def _bare(data: Path) -> Side:
    return own_side("bare", "bare", REFERENCE, data)


def _engines(data: Path, quick: bool) -> Iterator[Row]:
    say("reference job: bare loop and engines")
    found = take_turns(
        [
            _bare(data),
            _ours(data, "inprocess"),
            _ours(data, "processes", "engine=processes"),
            own_side("peak", "peak", REFERENCE, data),
        ],
        turns=2 if quick else 9,
        budget_s=_QUICK_S if quick else 90.0,
    )
    yield from compared("reference_fp32_vs_bare", found, "inprocess", "bare")
    yield from compared("reference_processes_vs_bare", found, "processes", "bare")
    yield from bare("reference", found["bare"])
    yield from _limits(found["inprocess"], found["peak"])


def _limits(ours: Outcome, peak: Outcome) -> Iterator[Row]:
    flops, moved = flops_of_client(REFERENCE), bytes_of_client(REFERENCE)
    yield Row("reference_gflop_per_client", flops * 1e-9, "GFLOP, a round of one client")
    yield Row("reference_mb_per_client", moved * 1e-6, "MB read and written by its operators")
    yield Row("reference_flop_per_byte", flops / moved, "FLOP/byte")
    if ours.missing is None and peak.missing is None:
        achieved = 1e-9 * flops * REFERENCE.cohort / ours.median_s
        yield Row("reference_gflops", achieved, "GFLOP/s, float32, the whole round")
        yield Row("peak_gflops", peak.facts["gflops"], "GFLOP/s, the best of float32 products")
        yield Row("share_of_peak", achieved / peak.facts["gflops"], "of peak_gflops")


def _bf16(data: Path) -> Iterator[Row]:
    # Apart, because without instructions for it a round takes many times as long.
    say("reference job: bfloat16")
    found = take_turns([_bare(data), _ours(data, "bf16", _BF16)], turns=3, budget_s=10.0)
    yield from compared("reference_bf16_vs_bare", found, "bf16", "bare", _BF16_LABEL)


def _ray(data: Path) -> Iterator[Row]:
    # Apart: Ray's own processes never rest, whoever's turn it is.
    say("reference job: bare loop and Ray")
    sides = [_bare(data), _ours(data, "ray", "engine=ray")]
    found = take_turns(sides, turns=5, budget_s=40.0)
    yield from compared("reference_ray_vs_bare", found, "ray", "bare")


def _protections(data: Path) -> Iterator[Row]:
    say("reference job: protections")
    secure, private = REFERENCE.secure(), REFERENCE.private()
    found = take_turns(
        [
            _ours(data, "plain"),
            _ours(data, "secagg", *secure),
            _ours(data, "record", *private),
            _ours(data, "both", *secure, *private),
        ],
        turns=5,
        budget_s=80.0,
    )
    yield from multiple("secagg_vs_plain", found, "secagg", "plain", aim=1.9)
    yield from multiple("record_vs_plain", found, "record", "plain", aim=1.9)
    yield from multiple("both_vs_plain", found, "both", "plain", aim=2.8)


def _peer(data: Path, peer: str, quick: bool) -> Iterator[Row]:
    say(f"reference job: {peer}")
    name, label = f"reference_fp32_vs_{peer}", peers.PEERS[peer].label
    try:
        theirs = peers.side_of(peer, REFERENCE, data)
    except RunError as error:
        yield Row(name, None, f"skipped: {error}")
        return
    found = take_turns([_ours(data, "inprocess"), theirs], turns=2 if quick else 7)
    yield from compared(name, found, "inprocess", peer, label)
    yield from seconds(f"reference_{peer}", found[peer], label)
    if peer == "flower":
        say("reference job: first rounds from a cold start")
        yield from _first_rounds(data, theirs, 1 if quick else _COLD_TIMES)


def _first_rounds(data: Path, theirs: Side, times: int) -> Iterator[Row]:
    """Yields the row of fresh processes, by turns, imports and making of sites included."""
    name, ours_s, theirs_s = f"reference_fp32_vs_flower_first{_FIRST}", [], []
    for _ in range(times):
        pair = from_cold(_ours(data, "inprocess"), _FIRST), from_cold(theirs, _FIRST)
        for outcome in pair:
            if outcome.missing is not None:
                yield Row(name, None, f"skipped: {outcome.missing}")
                return
        ours_s.append(pair[0].median_s)
        theirs_s.append(pair[1].median_s)
    ratio = statistics.median(b / a for a, b in zip(ours_s, theirs_s, strict=True))
    unit = f"s for {_FIRST} rounds from a cold start"
    yield Row(name, statistics.median(ours_s), unit, ratio)
    yield Row(f"reference_flower_first{_FIRST}", statistics.median(theirs_s), unit)
