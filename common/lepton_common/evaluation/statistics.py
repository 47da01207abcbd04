"""What all kinds of statistics have in common, and each kind under one roof.

Statistics of records are vectors of a fixed length that add up over records, batches and sites.
What one record adds is bounded, so that their sum can go through secure aggregation and be noised.
"""

from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from lepton_common.evaluation.anomaly import AnomalyStatistics, reconstruction_errors
from lepton_common.evaluation.classes import ClassStatistics
from lepton_common.evaluation.inputs import Floats
from lepton_common.evaluation.regression import RegressionStatistics
from lepton_common.evaluation.survival import SurvivalStatistics, hazard_risks
from lepton_common.evaluation.tokens import TokenStatistics

if TYPE_CHECKING:
    import torch

__all__ = [
    "AnomalyStatistics",
    "ClassStatistics",
    "RegressionStatistics",
    "Statistics",
    "SurvivalStatistics",
    "TokenStatistics",
    "all_metrics",
    "hazard_risks",
    "reconstruction_errors",
]


class Statistics(Protocol):
    """One kind of problem's statistics."""

    @property
    def length(self) -> int:
        """Numbers in a vector."""

    @property
    def per_record_bound(self) -> float:
        """Greatest L2 norm of what one record adds to a vector."""

    def of(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> Floats:
        """Returns the statistics of some records, float64, shape [length]."""

    def count(self, vector: NDArray[Any]) -> float:
        """Returns how many records a sum of statistics is of, also a noised one."""

    def metrics(self, vector: NDArray[Any]) -> dict[str, float]:
        """Returns finite metrics from a sum of statistics; what is undefined is left out."""

    def exact(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> dict[str, float]:
        """Returns those metrics that a vector only approximates, from all records at once."""


def all_metrics(
    statistics: Statistics,
    outputs: "torch.Tensor | NDArray[Any]",
    labels: "torch.Tensor | NDArray[Any]",
) -> dict[str, float]:
    """Returns every metric of records that are all at hand, such as a public test set, exactly."""
    return statistics.metrics(statistics.of(outputs, labels)) | statistics.exact(outputs, labels)
