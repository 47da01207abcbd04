"""What can be told from a noisy sum: counts, shares, means, quantiles, each with its error.

All of it is computed from what was released, so it costs no privacy. An error is the standard
deviation that the noise gives a figure, to first order; it says nothing of who is in the data.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.statistics import MOMENTS_NORM, Cells

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_LEAST = 3.0  # errors of the count of people, below which a share of them means nothing
Values = NDArray[np.float64]
Figure = dict[str, float] | None


@dataclass(frozen=True)
class NoisyCells:
    """The sum of all sites' answers.

    Attributes:
        cells: its layout.
        total: in steps of one person, float64, shape [d].
        error: standard deviation of the noise on a cell, likewise.
    """

    cells: Cells
    total: Values
    error: float

    @classmethod
    def of(cls, cells: Cells, total: Values, noise: float) -> "NoisyCells":
        """Takes a sum of vectors whose norm is 1 at most for each person.

        Args:
            cells: its layout.
            total: shape [d].
            noise: standard deviation of the noise on each value.
        """
        return cls(cells, total / cells.scale, noise * math.sqrt(cells.blocks))

    @cached_property
    def _people(self) -> tuple[float, float]:
        """The number of people and its error.

        Not their count alone: each person is once in the labels and once in each histogram too,
        missing or not, so those add up to the same, and the sums are weighed by their variances.
        """
        cells = self.cells
        histograms = self.total[cells.histograms].reshape(cells.width, cells.bins + 1)
        sums = [float(self.total[0]), *histograms.sum(axis=1).tolist()]
        variances = [1.0] + cells.width * [cells.bins + 1.0]
        if cells.label_values and cells.label_kind != "tokens":  # not every position has one
            sums.append(float(self.total[cells.labels].sum()))
            variances.append(float(cells.label_values))
        weights = 1.0 / np.array(variances)
        mean = float(weights @ np.array(sums) / weights.sum())
        return mean, self.error / math.sqrt(float(weights.sum()))

    def people(self) -> dict[str, float]:
        """Returns how many people there are."""
        value, error = self._people
        return _figure(max(0.0, value), error)

    def labels(self) -> list[dict[str, Any]]:
        """Returns how many people have each label, and their share."""
        counts = self.total[self.cells.labels]
        return [
            {
                "label": value,
                "count": _figure(max(0.0, float(count)), self.error),
                "share": _ratio(float(count), self.error, *self._people, 0.0, 1.0),
            }
            for value, count in enumerate(counts)
        ]

    def columns(self, names: list[str]) -> list[dict[str, Any]]:
        """Returns the figures of each column, on its public range as -1 to 1."""
        cells = self.cells
        histograms = self.total[cells.histograms].reshape(cells.width, cells.bins + 1)
        moments = self.total[cells.moments].reshape(2, cells.width)
        return [
            self._column(name, histograms[place, :-1], float(histograms[place, -1]),
                         float(moments[0, place]), float(moments[1, place]))
            for place, name in enumerate(names)
        ]  # fmt: skip

    def _column(
        self, name: str, counts: Values, missing: float, first: float, second: float
    ) -> dict[str, Any]:
        people, people_error = self._people
        # What is missing has no moments, so the means are of those that have a value. The errors
        # go together, which only makes the difference better than it is taken for.
        there = people - max(0.0, missing)
        there_error = math.hypot(people_error, self.error)
        error = self.error * MOMENTS_NORM
        mean = _ratio(first, error, there, there_error, -1.0, 1.0)
        square = _ratio(second, error, there, there_error, -0.5, 0.5)
        return {
            "name": name,
            "missing": _ratio(missing, self.error, people, people_error, 0.0, 1.0),
            "mean": mean,
            "variance": _variance(mean, square),
            "quantiles": {
                f"{share:g}": _quantile(counts, self.error, there, there_error, share)
                for share in QUANTILES
            },
            "histogram": {"counts": np.maximum(counts, 0.0).tolist(), "error": self.error},
        }


def _figure(value: float, error: float) -> dict[str, float]:
    return {"value": value, "error": error}


def _ratio(
    part: float, part_error: float, whole: float, whole_error: float, low: float, high: float
) -> Figure:
    """Returns a noisy number over another, within bounds; None where the noise drowns it."""
    if whole < _LEAST * whole_error:
        return None
    value = min(high, max(low, part / whole))
    return _figure(value, math.hypot(part_error, value * whole_error) / whole)


def _variance(mean: Figure, square: Figure) -> Figure:
    if mean is None or square is None:
        return None
    value = max(0.0, square["value"] + 0.5 - mean["value"] ** 2)
    return _figure(value, math.hypot(square["error"], 2 * mean["value"] * mean["error"]))


def _quantile(
    counts: Values, error: float, there: float, there_error: float, share: float
) -> Figure:
    """Returns a quantile by the histogram, people spread evenly within each bin."""
    if there < _LEAST * there_error:
        return None
    bins, ends = len(counts), cumulative(counts, there)
    target = share * there
    below = np.searchsorted(ends, target) + 0.5
    spread = math.hypot(
        error * math.sqrt(below * (1 - below / bins)), (below / bins - share) * there_error
    )
    low, high = max(0.0, target - spread), min(there, target + spread)
    # By how far the quantile moves, not by the slope at it, which is the noise's own.
    return _figure(_place(ends, target), (_place(ends, high) - _place(ends, low)) / 2)


def _place(ends: Values, target: float) -> float:
    place = min(int(np.searchsorted(ends, target)), len(ends) - 1)
    before = float(ends[place - 1]) if place else 0.0
    inside = (target - before) / max(float(ends[place]) - before, 1e-12)
    return -1.0 + 2.0 * (place + min(1.0, max(0.0, inside))) / len(ends)


def cumulative(counts: Values, total: float) -> Values:
    """Returns how many people are below the end of each bin, never falling, to a total, shape [b].

    Isotonic regression of the noisy sums (Hay et al. 2010, Boosting the accuracy of differentially
    private histograms): to cut counts at 0 would add half of the noise of each empty bin.
    """
    from scipy.optimize import isotonic_regression

    ends = np.cumsum(counts)
    ends -= (ends[-1] - total) * np.arange(1, len(counts) + 1) / len(counts)
    rising: Values = np.clip(isotonic_regression(ends).x, 0.0, total)
    rising[-1] = total
    return rising
