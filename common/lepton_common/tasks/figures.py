"""What a model's outputs come to on held-back records, by what it was trained for."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import numpy as np
import torch

from lepton_common.evaluation.statistics import (
    AnomalyStatistics,
    ClassStatistics,
    RegressionStatistics,
    Statistics,
    SurvivalStatistics,
    TokenStatistics,
    all_metrics,
    hazard_risks,
)
from lepton_common.evaluation.survival import concordance
from lepton_common.tasks.objectives import (
    Cox,
    CrossEntropy,
    Hazard,
    NextToken,
    Objective,
    Reconstruction,
    Regression,
    Shape,
)

if TYPE_CHECKING:
    from lepton_common.tasks.catalog import Task


class Figures(ABC):
    """Takes outputs and labels batch by batch, and says what they come to."""

    def __init__(self, task: "Task", *, every: bool) -> None:
        """Begins with no record.

        Args:
            task: what was learned.
            every: whether to tell all that is known of such outputs, or only what is quick to
                tell in every round, the headline among it.
        """
        self._task, self._every = task, every
        self._loss, self._count = 0.0, 0

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes the outputs for some records, and their labels."""
        self._loss += float(self._task.losses(outputs, labels).double().sum())
        self._count += len(labels)
        self._take(outputs.detach(), labels)

    def result(self) -> dict[str, float]:
        """Returns all figures that the records define, and the mean ``loss``."""
        return {**self._figures(), "loss": self._loss / self._count}

    @abstractmethod
    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None: ...

    @abstractmethod
    def _figures(self) -> dict[str, float]: ...


class _Classes(Figures):
    def __init__(self, task: "Task", *, every: bool) -> None:
        super().__init__(task, every=every)
        self._right, self._held = 0, _Held()
        self._holds = every or task.headline.name != "accuracy"

    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        single = outputs.shape[1] == 1
        said = (outputs.squeeze(1) > 0).long() if single else outputs.argmax(dim=1)
        self._right += int((said == labels).sum())
        if self._holds:
            self._held.add(outputs, labels)

    def _figures(self) -> dict[str, float]:
        found = {"accuracy": self._right / self._count}
        if self._holds:
            outputs, labels = self._held.joined()
            everything = all_metrics(ClassStatistics(max(2, outputs.shape[1])), outputs, labels)
            wanted = everything if self._every else {self._task.headline.name}
            found = {name: everything[name] for name in everything if name in wanted} | found
        return found


class _Numbers(Figures):
    def __init__(self, task: "Task", *, every: bool) -> None:
        super().__init__(task, every=every)
        low, high, _ = task.scale
        self._statistics = RegressionStatistics(low, high)
        self._sum = np.zeros(self._statistics.length)

    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._sum += self._statistics.of(*judged(self._task, outputs, labels))

    def _figures(self) -> dict[str, float]:
        return self._statistics.metrics(self._sum)


class _Tokens(Figures):
    def __init__(self, task: "Task", *, every: bool) -> None:
        super().__init__(task, every=every)
        self._statistics: TokenStatistics | None = None
        self._sum: np.ndarray = np.zeros(3)

    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        _, positions, vocabulary = outputs.shape
        self._statistics = self._statistics or TokenStatistics(vocabulary, positions)
        self._sum = self._sum + self._statistics.of(outputs, labels)

    def _figures(self) -> dict[str, float]:
        return self._statistics.metrics(self._sum) if self._statistics else {}


class _Together(Figures, ABC):
    """Figures of all records at once."""

    def __init__(self, task: "Task", *, every: bool) -> None:
        super().__init__(task, every=every)
        self._held = _Held()

    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._held.add(*judged(self._task, outputs, labels))


class _Anomalies(_Together):
    def _figures(self) -> dict[str, float]:
        return all_metrics(AnomalyStatistics(), *self._held.joined())


class _Survival(_Together):
    def _figures(self) -> dict[str, float]:
        risks, labels = (part.double().numpy() for part in self._held.joined())
        found = concordance(labels[:, 0], labels[:, 1] == 1, risks)
        return {} if found is None else {"c_index": found}


class _Held:
    """Outputs and labels of all batches, where no sum over them says enough."""

    def __init__(self) -> None:
        self._parts: list[tuple[torch.Tensor, torch.Tensor]] = []

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        self._parts.append((outputs.cpu(), labels.cpu()))

    def joined(self) -> tuple[torch.Tensor, torch.Tensor]:
        outputs, labels = zip(*self._parts, strict=True)
        return torch.cat(outputs), torch.cat(labels)


_KINDS: dict[type[Objective], type[Figures]] = {
    CrossEntropy: _Classes,
    Regression: _Numbers,
    NextToken: _Tokens,
    Reconstruction: _Anomalies,
    Hazard: _Survival,
    Cox: _Survival,
}


def figures_of(task: "Task", *, every: bool) -> Figures:
    """Returns a collector of a task's figures; see `Figures`."""
    (kind,) = (found for of, found in _KINDS.items() if isinstance(task.objective, of))
    return kind(task, every=every)


def judged(
    task: "Task", outputs: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns a model's outputs and the labels in the form in which `statistics_of` takes them."""
    objective = task.objective
    if isinstance(objective, Regression):
        low, high, _ = task.scale
        middle, half = (low + high) / 2, (high - low) / 2
        return middle + half * outputs.double(), middle + half * labels.double()
    if isinstance(objective, Reconstruction):
        return task.losses(outputs, labels), labels[:, 0].long()
    if isinstance(objective, Cox):
        return outputs[:, 0].double(), labels
    if isinstance(objective, Hazard):
        return torch.from_numpy(hazard_risks(outputs)), labels
    return outputs, labels


def statistics_of(task: "Task", classes: int, input_shape: Shape, bins: int) -> Statistics:
    """Returns which sums over records a task's figures are told from.

    Args:
        task: what was learned.
        classes: number of label values, or of tokens.
        input_shape: shape of one record's features.
        bins: of each histogram of scores; with noise, fewer are better.
    """
    objective = task.objective
    if isinstance(objective, Regression):
        return RegressionStatistics(*task.scale[:2])
    if isinstance(objective, NextToken):
        return TokenStatistics(classes, input_shape[0])
    if isinstance(objective, Reconstruction):
        return AnomalyStatistics(bins=bins)
    if isinstance(objective, Cox | Hazard):
        return SurvivalStatistics(task.horizon, min(200, 4 * bins), min(50, bins))
    return ClassStatistics(max(2, classes), score_bins=bins)
