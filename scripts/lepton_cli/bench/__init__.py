"""Benchmarks: ``./scripts/bench NAME [--quick] [--json FILE] [--peers] [--plots FOLDER]``.

A benchmark yields rows; a row's ratio is always a speed ratio, the reference's time divided by
ours, measured side by side in one run: above 1 means that we are faster.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One line of a benchmark.

    Attributes:
        name: stable name, by which documents cite it.
        value: what was measured; None where it could not be.
        unit: of the value, or why there is none.
        ratio: reference's time over ours; None where the row has no reference.
    """

    name: str
    value: float | None
    unit: str
    ratio: float | None = None
