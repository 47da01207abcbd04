"""What can be told from a noisy sum: counts, shares, means, variances, quantiles, each with its error.

All of it is computed from what was released, so it costs no privacy. An error is the standard
deviation that the noise gives a figure, to first order; it says nothing of who is in the data.
"""

import math
from dataclasses import dataclass
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
        return cls(cells, total / cells.scale.astype(np.float64), noise * math.sqrt(cells.blocks))

    def people(self) -> dict[str, float]:
        """Returns how many people there are."""
        return _figure(max(0.0, float(self.total[0])), self.error)

    def labels(self) -> list[dict[str, Any]]:
        """Returns how many people have each label, and their share."""
        counts, people = self.total[self.cells.labels], self.people()
        return [
            {
                "label": value,
                "count": _figure(max(0.0, float(count)), self.error),
                "share": _ratio(float(count), self.error, people["value"], self.error, 0.0, 1.0),
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
        people = float(self.total[0])
        # What is missing has no moments, so the means are of those that have a value.
        there, there_error = people - max(0.0, missing), self.error * math.sqrt(2)
        error = self.error * MOMENTS_NORM
        mean = _ratio(first, error, there, there_error, -1.0, 1.0)
        square = _ratio(second, error, there, there_error, -0.5, 0.5)
        return {
            "name": name,
            "missing": _ratio(missing, self.error, people, self.error, 0.0, 1.0),
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


def _quantile(counts: Values, error: float, there: float, there_error: float, share: float) -> Figure:
    """Returns a quantile by the histogram, spread evenly within each bin."""
    if there < _LEAST * there_error:
        return None
    bins = len(counts)
    heights = consistent(counts, there)
    ends = np.cumsum(heights)
    place = int(np.searchsorted(ends, share * there))
    place = min(place, int(np.flatnonzero(heights)[-1]))
    inside = (share * there - (ends[place] - heights[place])) / heights[place]
    value = -1.0 + 2.0 * (place + min(1.0, max(0.0, inside))) / bins
    # Of the share below: (1 - q) of the cells up to there less q of those beyond.
    below = place + 1
    spread = error * math.sqrt((1 - share) ** 2 * below + share**2 * (bins - below))
    slope = heights[place] * bins / 2.0
    return _figure(value, min(2.0, spread / slope))


def consistent(counts: Values, total: float) -> Values:
    """Returns the nearest counts that are none below 0 and add up to a total, shape [bins].

    The Euclidean projection to the simplex (Duchi et al. 2008): cutting at 0 alone would add
    half of the noise of each empty bin.
    """
    ordered = np.sort(counts)[::-1]
    shifts = (np.cumsum(ordered) - total) / np.arange(1, len(counts) + 1)
    last = int(np.flatnonzero(ordered > shifts)[-1])
    projected: Values = np.maximum(counts - shifts[last], 0.0)
    return projected
