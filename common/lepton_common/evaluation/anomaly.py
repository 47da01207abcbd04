"""Statistics of anomaly detection: how well reconstruction errors tell anomalies from the rest."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import ModelMismatch
from lepton_common.evaluation.inputs import (
    Floats,
    checked,
    floats,
    labels_of,
    outputs_of,
    require,
)
from lepton_common.evaluation.scores import histograms, pr_auc, roc_auc

if TYPE_CHECKING:
    import torch

_LEAST = 0.5  # records; with fewer, counts are noise


def reconstruction_errors(
    outputs: "torch.Tensor | NDArray[Any]", features: "torch.Tensor | NDArray[Any]"
) -> Floats:
    """Returns the mean squared error of each record, float64, shape [n].

    Args:
        outputs: reconstructions, shape [n, ...].
        features: what was to be reconstructed, as many numbers a record.

    Raises:
        ModelMismatch: outputs of another size.
    """
    wanted, made = floats(features), floats(outputs)
    if len(made) != len(wanted) or made.size != wanted.size:
        raise ModelMismatch(
            f"Reconstructions should be of shape {wanted.shape}, not {made.shape}; "
            "check that model and task belong together."
        )
    if not len(wanted):
        return np.zeros(0)
    squares = (made - wanted.reshape(made.shape)) ** 2
    errors: Floats = squares.reshape(len(wanted), -1).mean(axis=1)
    return errors


@dataclass(frozen=True)
class AnomalyStatistics:
    """Counts over records of what metrics of an anomaly score need.

    The vector holds counts of normal records by score, then of anomalies. Bins are of equal width
    in a smooth function of log(score / scale), so they are fine over six powers of ten around it.

    A score that is not a number counts as the highest.

    Attributes:
        scale: about the size of scores, and public; being wrong by 100 costs little.
        bins: of the scores.
    """

    scale: float = 0.1
    bins: int = 1000

    def __post_init__(self) -> None:
        """Refuses parameters that make no sense."""
        require(0 < self.scale < np.inf, f"The scale of scores is above 0, not {self.scale}.")
        require(self.bins >= 2, f"There are 2 score bins or more, not {self.bins}.")

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return 2 * self.bins

    @property
    def per_record_bound(self) -> float:
        """Greatest L2 norm of what one record adds: 1 in one bin."""
        return 1.0

    def of(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> Floats:
        """Returns the statistics of some records, float64, shape [length].

        Args:
            outputs: scores of 0 or more, higher for what is odder, such as
                `reconstruction_errors`; shape [n].
            labels: 0 normal, 1 anomaly, shape [n].

        Raises:
            ModelMismatch: scores of another shape.
            DataInvalid: labels of another shape, or other ones.
        """
        scores, anomaly = self._logs(outputs, labels)
        return histograms(scores, anomaly, self.bins).ravel()

    def count(self, vector: NDArray[Any]) -> float:
        """Returns how many records a sum of statistics is of; see `Statistics`."""
        return float(checked(vector, self.length).sum())

    def metrics(self, vector: NDArray[Any]) -> dict[str, float]:
        """Returns what a sum of statistics says, also a noised one; what is undefined is left out.

        ``roc_auc``, ``pr_auc`` and ``anomaly_share``, which is the PR-AUC of guessing.

        Raises:
            UpdateInvalid: the vector has another length or is not finite.
        """
        counts = self.score_counts(vector)
        total = counts.sum()
        if total < _LEAST:
            return {}
        found = {
            "roc_auc": roc_auc(counts),
            "pr_auc": pr_auc(counts),
            "anomaly_share": float(np.clip(counts[1].sum() / total, 0.0, 1.0)),
        }
        return {name: value for name, value in found.items() if value is not None}

    def exact(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> dict[str, float]:
        """Returns scikit-learn's ``roc_auc`` and ``pr_auc``, where all records are at hand."""
        from sklearn.metrics import average_precision_score, roc_auc_score

        scores, anomaly = self._logs(outputs, labels)
        if not 0 < anomaly.sum() < len(anomaly):
            return {}
        scores = np.clip(np.nan_to_num(scores, nan=np.inf), -1e300, 1e300)
        return {
            "roc_auc": float(roc_auc_score(anomaly, scores)),
            "pr_auc": float(average_precision_score(anomaly, scores)),
        }

    def score_counts(self, vector: NDArray[Any]) -> Floats:
        """Returns counts by score of normal records and of anomalies, for curves; [2, bins]."""
        return checked(vector, self.length).reshape(2, self.bins)

    def _logs(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> tuple[Floats, NDArray[np.bool_]]:
        scores = outputs_of(outputs, (None, 1))[:, 0]
        anomaly = labels_of(labels, (len(scores),), 0, 1) == 1
        return np.log(np.maximum(scores, 1e-300) / self.scale), anomaly
