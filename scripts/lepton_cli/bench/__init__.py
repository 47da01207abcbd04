"""Benchmarks: ``./scripts/bench NAME [--quick] [--json FILE] [--peers]``.

A benchmark yields rows; a row's ratio is always a speed ratio, the reference's time divided by
ours, measured side by side in one run: above 1 means that we are faster.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        name: stable name, by which documents cite it.
        value: what was measured.
        unit: of the value.
        ratio: reference's time over ours; None where the row has no reference.
    """

    name: str
    value: float
    unit: str
    ratio: float | None = None
