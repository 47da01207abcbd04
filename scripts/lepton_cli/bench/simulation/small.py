"""The rows of the small job, where a round is overhead and little else."""

from collections.abc import Iterator
from pathlib import Path

from lepton_cli.bench import Row, peers
from lepton_cli.bench.simulation.jobs import SMALL, data_of
from lepton_cli.bench.simulation.rows import bare, compared, multiple, seconds
from lepton_cli.bench.simulation.side import own_side
from lepton_cli.bench.simulation.sides import Side, say, take_turns
from lepton_common.errors import RunError

_MANY = "engine=vectorized"
_PEERS = ("pfl", "flower")


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields the rows of the small job."""
    turns = 5 if quick else 25
    with data_of(SMALL) as data:
        say("small job: bare loop, kernel and engines")
        found = take_turns(
            [
                own_side("bare", "bare", SMALL, data),
                own_side("kernel", "kernel", SMALL, data),
                _ours(data, "vectorized", _MANY),
                _ours(data, "inprocess"),
            ],
            turns,
            budget_s=8.0 if quick else 40.0,
        )
        yield from compared("small_kernel_vs_bare", found, "kernel", "bare", "training alone")
        yield from compared("small_vectorized_vs_bare", found, "vectorized", "bare")
        yield from compared("small_inprocess_vs_bare", found, "inprocess", "bare")
        yield from bare("small", found["bare"])
        if not quick:
            say("small job: record DP")
            sides = [_ours(data, "plain", _MANY), _ours(data, "record", _MANY, *SMALL.private())]
            found = take_turns(sides, turns, budget_s=25.0)
            yield from multiple("small_record_vs_plain", found, "record", "plain", aim=2)
        if with_peers:
            for peer in _PEERS:
                yield from _peer(data, peer, turns)


def _ours(data: Path, name: str, *overrides: str) -> Side:
    return own_side(name, "federation", SMALL, data, *overrides)


def _peer(data: Path, peer: str, turns: int) -> Iterator[Row]:
    say(f"small job: {peer}")
    name = f"small_vectorized_vs_{peer}"
    try:
        theirs = peers.side_of(peer, SMALL, data)
    except RunError as error:
        yield Row(name, None, f"skipped: {error}")
        return
    found = take_turns([_ours(data, "vectorized", _MANY), theirs], turns, budget_s=90.0)
    yield from compared(name, found, "vectorized", peer)
    yield from seconds(f"small_{peer}", found[peer])
