"""What a model's outputs come to on held-back records, by what it was trained for."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lepton_common.tasks.catalog import Task


class Figures(ABC):
    """Takes outputs and labels batch by batch."""

    def __init__(self, task: "Task") -> None:
        self._task = task
        self._loss, self._count = 0.0, 0

    def add(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        """Takes the outputs for some records, and their labels."""
        self._loss += float(self._task.losses(outputs, labels).double().sum())
        self._count += len(labels)
        self._take(outputs, labels)

    def result(self) -> dict[str, float]:
        """Returns all figures that the records define."""
        return {**self._figures(), "loss": self._loss / self._count}

    @abstractmethod
    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None: ...

    @abstractmethod
    def _figures(self) -> dict[str, float]: ...


class _Classes(Figures):
    def __init__(self, task: "Task") -> None:
        super().__init__(task)
        self._right = 0

    def _take(self, outputs: torch.Tensor, labels: torch.Tensor) -> None:
        binary = self._task.learns == "binary"
        said = (outputs.squeeze(1) > 0).long() if binary else outputs.argmax(dim=1)
        self._right += int((said == labels).sum())

    def _figures(self) -> dict[str, float]:
        return {"accuracy": self._right / self._count}


def figures_of(task: "Task") -> Figures:
    """Returns a collector of a task's figures."""
    return _Classes(task)
