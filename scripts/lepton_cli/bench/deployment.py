"""Real rounds over a network: our deployment beside Flower's stock one, on one machine in one run.

Both train next to nothing on a model of the same size. A round's time is from the end of the one
before to its own end, all that is written to disk included. Memory is the peak of the summed
proportional set sizes of all processes of a coordinator: ours with nginx, control service,
SuperLink and executor, Flower's with SuperLink, its executor and the ServerApp's process.
"""

from collections.abc import Iterator

from lepton_cli.bench import Row
from lepton_cli.bench.federation import federation
from lepton_cli.bench.measured import Measured
from lepton_cli.bench.stock_flower import stock_flower

_PLAIN = ["privacy=none", "secagg=none"]
_PRIVATE = ["privacy=record", "privacy.epsilon=100", "secagg=sa1"]
_SITES, _COHORTS, _MB = 3, (3, 6, 12), 10**6


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields both sides' rounds and memory with three sites, for 1, 50 and 400 MB."""
    del with_peers
    rounds = {1: 6, 50: 4} if quick else {1: 12, 50: 8, 400: 5}
    with stock_flower(_SITES) as flower:
        theirs = {size: flower.measure(size, _SITES, max(3, n // 2)) for size, n in rounds.items()}
    with federation(_SITES) as ours:
        for size, count in rounds.items():
            yield from _rows(f"flower_{size}mb", size, theirs[size], None)
            plain = ours.measure(size, _SITES, count, _PLAIN)
            yield from _rows(f"plain_{size}mb", size, plain, theirs[size])
            if size <= 50:
                private = ours.measure(size, _SITES, count, _PRIVATE)
                yield from _rows(f"private_{size}mb", size, private, theirs[size])


def rows_by_sites(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields our memory at 50 MB with 3, 6 and 12 sites."""
    del with_peers
    cohorts = _COHORTS[:2] if quick else _COHORTS
    with federation(cohorts[-1]) as ours:
        for sites in cohorts:
            found = ours.measure(50, sites, 4, _PLAIN)
            yield from _rows(f"plain_50mb_{sites}_sites", 50, found, None)


def rows_large(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields our rounds with a model of 2 GB (quick: 400 MB) and two sites."""
    del with_peers
    size = 400 if quick else 2000
    with federation(2) as ours:
        yield from _rows(f"plain_{size}mb_2_sites", size, ours.measure(size, 2, 2, _PLAIN), None)


def _rows(name: str, size: int, found: Measured, flower: Measured | None) -> Iterator[Row]:
    ratio = flower.median / found.median if flower else None
    yield Row(name, found.median, "s/round, median", ratio)
    yield Row(f"{name}_fastest", min(found.seconds), "s/round")
    yield Row(f"{name}_slowest", max(found.seconds), "s/round")
    less = flower.peak / found.peak if flower else None
    yield Row(f"{name}_peak_pss", found.peak / _MB, "MB; ratio: of memory", less)
    yield Row(f"{name}_peak_over_model", found.peak / (size * _MB), "x model")
    yield Row(f"{name}_idle_pss", found.idle / _MB, "MB")
    for process, held in sorted(found.at_peak.items(), key=lambda entry: -entry[1]):
        if held > 20 * _MB:
            yield Row(f"{name}_at_peak: {process}", held / _MB, "MB")
