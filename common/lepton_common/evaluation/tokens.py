"""Statistics of next-token prediction: how often it is right, and how surprised it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.evaluation.inputs import (
    Floats,
    checked,
    labels_of,
    log_sum_exp,
    outputs_of,
    require,
)

if TYPE_CHECKING:
    import torch

_LEAST = 0.5  # positions; with fewer, counts are noise
_GREATEST_EXPONENT = 700.0


@dataclass(frozen=True)
class TokenStatistics:
    """Sums over records of what metrics of a language model need.

    The vector holds the number of positions that have a label, of those that were right, and the
    sum of their log losses in units of ``loss_cap``; all three in units of ``positions``, so that
    a whole record of that many adds little more than a norm of 1.

    An output that is not finite counts as a wrong prediction of full loss.

    Attributes:
        vocabulary: number of tokens, 2 or more.
        positions: most positions of a record, T.
        loss_cap: nats at which a position's log loss is clipped, and public.
    """

    vocabulary: int
    positions: int
    loss_cap: float = 20.0

    def __post_init__(self) -> None:
        """Refuses parameters that make no sense."""
        require(self.vocabulary >= 2, f"A vocabulary has 2 tokens or more, not {self.vocabulary}.")
        require(self.positions >= 1, f"A record has 1 position or more, not {self.positions}.")
        require(0 < self.loss_cap < np.inf, f"A loss is capped above 0, not at {self.loss_cap}.")

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return 3

    @property
    def per_record_bound(self) -> float:
        """Greatest L2 norm of what one record adds.

        A position that is right has a probability of at least 1/vocabulary, which bounds its loss;
        one that is wrong adds 1 for its count and at most 1 for its loss.
        """
        return float(np.sqrt(2.0 + min(1.0, np.log(self.vocabulary) / self.loss_cap) ** 2))

    def of(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> Floats:
        """Returns the statistics of some records, float64, shape [length].

        Args:
            outputs: logits, shape [n, T, vocabulary].
            labels: tokens, shape [n, T]; -1 where there is none.

        Raises:
            ModelMismatch: outputs of another shape.
            DataInvalid: labels of another shape, or not of this vocabulary.
        """
        logits, wanted = self._labelled(outputs, labels)
        losses, right = _judge(logits, wanted)
        capped = np.minimum(losses / self.loss_cap, 1.0)
        return np.array([len(losses), right.sum(), capped.sum()]) / self.positions

    def count(self, vector: NDArray[Any]) -> float:
        """Returns how many records a sum is of, if all positions have a label."""
        return float(checked(vector, self.length)[0])

    def metrics(self, vector: NDArray[Any]) -> dict[str, float]:
        """Returns what a sum of statistics says, also a noised one: nothing without positions.

        ``accuracy``, ``log_loss`` (nats a position) and ``perplexity``, which is its exponential.

        Raises:
            UpdateInvalid: the vector has another length or is not finite.
        """
        count, right, loss = checked(vector, self.length) * self.positions
        if count < _LEAST:
            return {}
        found = {"accuracy": float(np.clip(right / count, 0.0, 1.0))}
        return found | _surprise(self.loss_cap * float(np.clip(loss / count, 0.0, 1.0)))

    def exact(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> dict[str, float]:
        """Returns ``log_loss`` and ``perplexity`` of losses that are not clipped, if finite."""
        losses, _ = _judge(*self._labelled(outputs, labels))
        return _surprise(float(losses.mean())) if len(losses) else {}

    def _labelled(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> tuple[Floats, NDArray[np.int64]]:
        """Returns logits [m, vocabulary] and tokens [m] of the positions that have a label."""
        require(
            labels.ndim == 2 and labels.shape[1] <= self.positions,
            f"Labels are of at most {self.positions} positions a record, "
            f"not of shape {tuple(labels.shape)}.",
        )
        logits = outputs_of(outputs, (None, labels.shape[1], self.vocabulary))
        wanted = labels_of(labels, logits.shape[:2], -1, self.vocabulary - 1)
        return logits[wanted >= 0], wanted[wanted >= 0]


def _judge(logits: Floats, wanted: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    finite: NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
    logits = np.where(finite[:, None], logits, 0.0)
    losses = log_sum_exp(logits) - logits[np.arange(len(logits)), wanted]
    return np.where(finite, losses, np.inf), finite & (logits.argmax(axis=1) == wanted)


def _surprise(loss: float) -> dict[str, float]:
    if loss > _GREATEST_EXPONENT:
        return {"log_loss": loss} if np.isfinite(loss) else {}
    return {"log_loss": loss, "perplexity": float(np.exp(loss))}
