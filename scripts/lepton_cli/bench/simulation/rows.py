"""From what sides took to a benchmark's rows; a side that is missing is named, not left out."""

from collections.abc import Iterator, Mapping

from lepton_cli.bench import Row
from lepton_cli.bench.simulation.sides import Outcome


def compared(
    name: str, found: Mapping[str, Outcome], ours: str, reference: str, label: str = ""
) -> Iterator[Row]:
    """Yields a row with the time of ``ours`` and how many times faster it is than ``reference``."""
    unit = f"s/round; {label}" if label else "s/round"
    if (row := _missing(name, found, ours, reference)) is not None:
        yield row
    else:
        ratio = found[ours].times_faster_than(found[reference])
        yield Row(name, found[ours].median_s, unit, ratio)


def multiple(
    name: str, found: Mapping[str, Outcome], protected: str, plain: str, aim: float
) -> Iterator[Row]:
    """Yields a row with the time of ``protected`` as a multiple of that of ``plain``."""
    if (row := _missing(name, found, protected, plain)) is not None:
        yield row
    else:
        ratio = found[protected].times_faster_than(found[plain])
        yield Row(name, 1 / ratio, f"times the plain round's time (aim: at most {aim:g})", ratio)


def seconds(name: str, outcome: Outcome, label: str = "") -> Iterator[Row]:
    """Yields a row with the time of a side, where it is there."""
    if outcome.missing is None:
        yield Row(name, outcome.median_s, f"s/round; {label}" if label else "s/round")


def bare(job: str, outcome: Outcome) -> Iterator[Row]:
    """Yields the rows of the bare loop itself."""
    yield from seconds(f"{job}_bare", outcome)
    if outcome.missing is None:
        yield Row(f"{job}_bare_threads", outcome.facts["threads"], "threads, the fastest number")
        yield Row(f"{job}_turns", len(outcome.seconds), "rounds of each")


def _missing(name: str, found: Mapping[str, Outcome], *sides: str) -> Row | None:
    for side in sides:
        if (why := found[side].missing) is not None:
            return Row(name, None, f"skipped: {side}: {why}")
    return None
