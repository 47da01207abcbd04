"""Statistics of classification: which class was taken for which, how surely, and how ordered."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lepton_common.evaluation.inputs import (
    Floats,
    Whole,
    checked,
    labels_of,
    log_sum_exp,
    outputs_of,
    require,
)
from lepton_common.evaluation.scores import histograms, pr_auc, roc_auc

if TYPE_CHECKING:
    import torch

CALIBRATION_BINS = 15
_LEAST = 0.5  # records; with fewer, counts are noise
_MOST_NAMED = 20  # classes that get metrics of their own


class _Blocks(NamedTuple):
    confusion: Floats  # [true, predicted]
    loss: float  # nats
    scores: Floats  # [one-vs-rest, negative or positive, bin]
    calibration: Floats  # [count, confidence or correct, bin]


class _Judged(NamedTuple):
    labels: Whole
    predicted: Whole
    losses: Floats
    margins: Floats  # [n, classes]: log(p / (1 - p))


@dataclass(frozen=True)
class ClassStatistics:
    """Sums over records of what classification metrics need.

    The vector holds, in this order: the confusion matrix; the sum of log losses, in units of
    ``loss_cap``; counts by score of each class against the rest (of two classes, one), so scaled
    that a record adds a vector of norm 1 to all of them together; and for each of 15 equal bins of
    the confidence, how many predictions, the sum of their confidence and how many were right.

    An output that is not finite counts as a wrong prediction of full loss.

    Attributes:
        classes: number of label values, 2 or more.
        loss_cap: nats at which a record's log loss is clipped, and public.
        score_bins: bins of the scores; with noise, fewer are better (50 to 100); 0: no ROC-AUC and
            PR-AUC.
    """

    classes: int
    loss_cap: float = 10.0
    score_bins: int = 1000

    def __post_init__(self) -> None:
        """Refuses parameters that make no sense."""
        require(self.classes >= 2, f"Classes must be 2 or more, not {self.classes}.")
        require(0 < self.loss_cap < np.inf, f"A loss is capped above 0, not at {self.loss_cap}.")
        require(self.score_bins >= 0, f"There are 0 score bins or more, not {self.score_bins}.")

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return self.classes**2 + 1 + self._curves * 2 * self.score_bins + 3 * CALIBRATION_BINS

    @property
    def per_record_bound(self) -> float:
        """Greatest L2 norm of what one record adds.

        A wrong prediction adds 1 (confusion) + 1 (loss) + 1 (scores) + 1 + confidence². A right
        one adds at most 1 + loss² + 1 + 1 + confidence² + 1, and its loss is -ln(confidence), at
        most ln(classes). Loss² + confidence² is convex in the confidence up to where the loss is
        capped, and beyond it falls with the confidence, so it is greatest at one of these ends.
        """
        most = min(np.log(self.classes), self.loss_cap)
        unsure = (most / self.loss_cap) ** 2 + np.exp(-2.0 * most)
        return float(np.sqrt((3 if self._curves else 2) + 1 + max(1.0, unsure)))

    def of(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> Floats:
        """Returns the statistics of some records, float64, shape [length].

        Args:
            outputs: logits, shape [n, classes]; of two classes also one logit, [n, 1] or [n].
            labels: whole numbers from 0, shape [n].

        Raises:
            ModelMismatch: outputs of another shape.
            DataInvalid: labels of another shape, or not of these classes.
        """
        judged = self._judge(outputs, labels)
        n, rows = len(judged.labels), np.arange(len(judged.labels))
        cells = judged.labels * self.classes + judged.predicted
        confusion = np.bincount(cells, minlength=self.classes**2).astype(np.float64)
        loss = np.minimum(judged.losses / self.loss_cap, 1.0).sum()
        scale = 1.0 / np.sqrt(max(self._curves, 1))
        scores = [
            scale * histograms(judged.margins[:, label], judged.labels == label, self.score_bins)
            for label in self._scored
        ]
        confidence = np.zeros(n) if not n else expit(judged.margins.max(axis=1))
        place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        calibration = np.zeros((3, CALIBRATION_BINS))
        right = judged.predicted == judged.labels
        for row, weights in enumerate((np.ones(n), confidence, right.astype(np.float64))):
            calibration[row] = np.bincount(place[rows], weights, minlength=CALIBRATION_BINS)
        return np.concatenate([confusion, [loss], *map(np.ravel, scores), calibration.ravel()])

    def count(self, vector: NDArray[Any]) -> float:
        """Returns how many records a sum of statistics is of; see `Statistics`."""
        blocks = self._split(vector)
        # Each record is once in the confusion matrix and once in the calibration.
        cells = np.array([self.classes**2, CALIBRATION_BINS])
        counts = np.array([blocks.confusion.sum(), blocks.calibration[0].sum()])
        return float((counts / cells).sum() / (1 / cells).sum())

    def metrics(self, vector: NDArray[Any]) -> dict[str, float]:
        """Returns what a sum of statistics says, also a noised one; what is undefined is left out.

        ``accuracy``, ``balanced_accuracy``, ``log_loss`` (nats), ``calibration_error``,
        ``roc_auc`` and ``pr_auc`` (of label 1 of two; else the mean over classes, each against the
        rest), ``precision``, ``recall`` and ``f1``, each ``_macro``, ``_micro`` and, of at most 20
        classes, by label, as in ``recall_0``. Classes that are neither in the labels nor predicted
        do not count; a class that is never predicted has precision 0.

        Raises:
            UpdateInvalid: the vector has another length or is not finite.
        """
        blocks = self._split(vector)
        total = blocks.confusion.sum()
        if total < _LEAST:
            return {}
        right = np.diag(blocks.confusion)
        held, taken = blocks.confusion.sum(axis=1), blocks.confusion.sum(axis=0)
        gaps = np.abs(blocks.calibration[1] - blocks.calibration[2]).sum()
        found = {
            "accuracy": _share(right.sum(), total),
            "log_loss": self.loss_cap * _share(blocks.loss, self.loss_cap * total),
            "calibration_error": _share(gaps, total),
        }
        recall = {k: _share(right[k], held[k]) for k in range(self.classes)}
        present = [k for k in range(self.classes) if held[k] >= _LEAST]
        if present:
            found["balanced_accuracy"] = _mean([recall[k] for k in present])
        known = [k for k in range(self.classes) if held[k] + taken[k] >= _LEAST]
        each = {
            "precision": {k: _share(right[k], taken[k]) for k in known},
            "recall": {k: recall[k] for k in known},
            "f1": {k: _share(2 * right[k], held[k] + taken[k]) for k in known},
        }
        for name, values in each.items():
            found[f"{name}_micro"] = found["accuracy"]  # one label a record: all three are alike
            if values:
                found[f"{name}_macro"] = _mean(list(values.values()))
            if self.classes <= _MOST_NAMED:
                found |= {f"{name}_{label}": value for label, value in values.items()}
        return found | _areas(
            [roc_auc(counts) for counts in blocks.scores],
            [pr_auc(counts) for counts in blocks.scores],
        )

    def exact(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> dict[str, float]:
        """Returns without bins and caps what `metrics` approximates, where all records are at hand.

        ``roc_auc`` and ``pr_auc`` are scikit-learn's, ``log_loss`` is not clipped (and left out
        where it is not finite).
        """
        from sklearn.metrics import average_precision_score, roc_auc_score

        judged = self._judge(outputs, labels)
        margins = np.clip(np.nan_to_num(judged.margins, nan=0.0), -1e300, 1e300)
        areas: tuple[list[float | None], list[float | None]] = ([], [])
        for label in self._scored:
            positive = judged.labels == label
            if 0 < positive.sum() < len(positive):
                areas[0].append(float(roc_auc_score(positive, margins[:, label])))
                areas[1].append(float(average_precision_score(positive, margins[:, label])))
        mean = {"log_loss": float(np.mean(judged.losses))} if len(judged.losses) else {}
        return {k: v for k, v in mean.items() if np.isfinite(v)} | _areas(*areas)

    def confusion(self, vector: NDArray[Any]) -> Floats:
        """Returns counts by true and predicted class, none below 0, shape [classes, classes]."""
        counts: Floats = np.maximum(self._split(vector).confusion, 0.0)
        return counts

    def score_counts(self, vector: NDArray[Any], label: int = 1) -> Floats:
        """Returns counts by score of the others and of one class, for curves; shape [2, bins].

        Args:
            vector: a sum of statistics.
            label: the class; of two classes only 1.
        """
        require(label in self._scored, f"There are no scores of class {label}.")
        counts: Floats = self._split(vector).scores[self._scored.index(label)]
        return counts

    def calibration(self, vector: NDArray[Any]) -> tuple[Floats, Floats, Floats]:
        """Returns count, mean confidence and accuracy of each bin that holds records."""
        count, confidence, right = self._split(vector).calibration
        kept = count >= _LEAST
        count = count[kept]
        return (
            count,
            np.clip(confidence[kept] / count, 0.0, 1.0),
            np.clip(right[kept] / count, 0.0, 1.0),
        )

    @property
    def _scored(self) -> range:
        if not self.score_bins:
            return range(0)
        return range(1, 2) if self.classes == 2 else range(self.classes)

    @property
    def _curves(self) -> int:
        return len(self._scored)

    def _split(self, vector: NDArray[Any]) -> _Blocks:
        values = checked(vector, self.length)
        k, scored = self.classes, self._curves * 2 * self.score_bins
        scores = values[k * k + 1 : k * k + 1 + scored] * np.sqrt(max(self._curves, 1))
        return _Blocks(
            values[: k * k].reshape(k, k),
            float(values[k * k]) * self.loss_cap,
            scores.reshape(self._curves, 2, self.score_bins),
            values[k * k + 1 + scored :].reshape(3, CALIBRATION_BINS),
        )

    def _judge(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> _Judged:
        single = self.classes == 2 and (outputs.ndim == 1 or outputs.shape[1] == 1)
        logits = outputs_of(outputs, (None, 1 if single else self.classes))
        if single:
            logits = np.hstack([np.zeros_like(logits), logits])
        wanted = labels_of(labels, (len(logits),), 0, self.classes - 1)
        rows = np.arange(len(logits))
        finite: NDArray[np.bool_] = np.asarray(np.isfinite(logits).all(axis=1))
        logits = np.where(finite[:, None], logits, 0.0)
        predicted = logits.argmax(axis=1)
        losses = log_sum_exp(logits) - logits[rows, wanted]
        margins = _margins(logits, predicted)
        predicted = np.where(finite, predicted, (wanted + 1) % self.classes)
        return _Judged(wanted, predicted, np.where(finite, losses, np.inf), margins)


def _margins(logits: Floats, highest: Whole) -> Floats:
    """Returns log(p / (1 - p)) of each class, also where p rounds to 1; [n, classes]."""
    rows = np.arange(len(logits))
    logs = logits - log_sum_exp(logits)[:, None]
    others = logits.copy()
    others[rows, highest] = -np.inf
    # Of two equal classes p is one half, which rounding may exceed.
    margins: Floats = logs - np.log1p(-np.minimum(np.exp(logs), 0.5))
    margins[rows, highest] = logits[rows, highest] - log_sum_exp(others)
    return margins


def _areas(roc: list[float | None], pr: list[float | None]) -> dict[str, float]:
    named = {"roc_auc": roc, "pr_auc": pr}
    defined = {name: [v for v in values if v is not None] for name, values in named.items()}
    return {name: _mean(values) for name, values in defined.items() if values}


def _share(part: float, whole: float) -> float:
    return float(np.clip(part / whole, 0.0, 1.0)) if whole >= _LEAST else 0.0


def _mean(values: list[float]) -> float:
    return float(np.mean(values))
