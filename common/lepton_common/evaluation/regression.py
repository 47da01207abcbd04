"""Statistics of regression: how far predictions of a quantity are from it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.evaluation.inputs import Floats, checked, outputs_of, quantities_of, require

if TYPE_CHECKING:
    import torch

_LEAST = 0.5  # records; with fewer, counts are noise


@dataclass(frozen=True)
class RegressionStatistics:
    """Sums over records of what regression metrics need.

    Labels and predictions are clipped to the public range: what lies outside cannot be true. The
    vector holds the sums of 1, z, z², e, e² and r, where z is the label's place in the range, from
    -1 to 1, e the absolute error in units of the range, and r the relative error
    ``|prediction - label| / max(|label|, floor)``, clipped and in units of ``relative_cap``.

    A prediction that is not a number counts as the end of the range that is farther from the label.

    Attributes:
        low: least value of the label, in its own unit, and public.
        high: greatest value.
        floor: least size of a label that a relative error is taken of, in its unit; None: a
            hundredth of the range.
        relative_cap: relative error at which a record's is clipped, and public.
    """

    low: float
    high: float
    floor: float | None = None
    relative_cap: float = 10.0

    def __post_init__(self) -> None:
        """Refuses parameters that make no sense."""
        require(
            bool(np.isfinite([self.low, self.high]).all()) and self.low < self.high,
            f"A public range goes from a low to a higher value, not {self.low} to {self.high}.",
        )
        require(
            self.floor is None or self.floor > 0,
            f"The floor of relative errors must be above 0, not {self.floor}.",
        )
        require(
            0 < self.relative_cap < np.inf,
            f"Relative errors are capped above 0, not at {self.relative_cap}.",
        )

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return 6

    @property
    def per_record_bound(self) -> float:
        """Greatest L2 norm of what one record adds: each of 6 numbers is at most 1."""
        return float(np.sqrt(6.0))

    def of(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> Floats:
        """Returns the statistics of some records, float64, shape [length].

        Args:
            outputs: predictions in the label's unit, shape [n] or [n, 1].
            labels: in their unit, shape [n].

        Raises:
            ModelMismatch: outputs of another shape.
            DataInvalid: labels of another shape, or not finite.
        """
        predicted = outputs_of(outputs, (None, 1))[:, 0]
        wanted = np.clip(quantities_of(labels, (len(predicted),)), self.low, self.high)
        farther = np.where(wanted > (self.low + self.high) / 2, self.low, self.high)
        predicted = np.where(np.isnan(predicted), farther, predicted)
        errors = np.abs(np.clip(predicted, self.low, self.high) - wanted)
        floor = (self.high - self.low) / 100 if self.floor is None else self.floor
        relative = errors / np.maximum(np.abs(wanted), floor) / self.relative_cap
        place = (wanted - self._middle) / self._half
        scaled = errors / (2 * self._half)
        rows = [np.ones_like(place), place, place**2, scaled, scaled**2, np.minimum(relative, 1.0)]
        return np.array([row.sum() for row in rows])

    def count(self, vector: NDArray[Any]) -> float:
        """Returns how many records a sum of statistics is of; see `Statistics`."""
        return float(checked(vector, self.length)[0])

    def metrics(self, vector: NDArray[Any]) -> dict[str, float]:
        """Returns what a sum of statistics says, also a noised one; what is undefined is left out.

        ``rmse`` and ``mae`` in the label's unit, ``mape`` as a share (0.1 is ten percent) and
        ``r2``, which is left out where labels do not differ.

        Raises:
            UpdateInvalid: the vector has another length or is not finite.
        """
        values = checked(vector, self.length)
        count = values[0]
        if count < _LEAST:
            return {}
        mean = np.clip(values[1:] / count, [-1, 0, 0, 0, 0], 1.0)
        width = 2 * self._half
        found = {
            "rmse": float(width * np.sqrt(mean[3])),
            "mae": float(width * mean[2]),
            "mape": float(self.relative_cap * mean[4]),
        }
        variance = mean[1] - mean[0] ** 2
        if variance > 1e-12:
            found["r2"] = float(1.0 - 4.0 * mean[3] / variance)
        return found

    def exact(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> dict[str, float]:
        """Returns nothing: what `metrics` says of whole sums is exact."""
        return {}

    @property
    def _middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def _half(self) -> float:
        return (self.high - self.low) / 2
