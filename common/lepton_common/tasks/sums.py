"""The sum over people that sites tell a model's figures by, on records that they hold back.

Each person adds the mean of their records' statistics (`lepton_common.evaluation`), in units of
the most that one record can add: a vector whose L2 norm is 1 at most, whatever the model says.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector
from lepton_common.evaluation.statistics import Statistics
from lepton_common.statistics import probe_of
from lepton_common.strict import Digest
from lepton_common.tasks.catalog import Task
from lepton_common.tasks.figures import statistics_of
from lepton_common.tasks.objectives import Shape

_NAME = 8  # numbers behind the model that name the query


@dataclass(frozen=True)
class FigureCells:
    """Where each figure stands in the sum.

    Attributes:
        task: what the model was trained for.
        statistics: which sums its figures are told from.
        model: digest of the model's layout.
    """

    task: Task
    statistics: Statistics
    model: Digest

    @property
    def size(self) -> int:
        """d, number of values in the sum."""
        return self.statistics.length

    @property
    def blocks(self) -> int:
        """Number of parts whose norm is 1 at most for each person."""
        return 1

    @property
    def scale(self) -> float:
        """What a person's statistics are multiplied by, for a norm of 1 at most."""
        return 1.0 / self.statistics.per_record_bound

    @property
    def digest(self) -> Digest:
        """Names the layouts of the model and of the sum."""
        parameters: dict[str, Any] = asdict(self.statistics)  # type: ignore[call-overload]
        kind = type(self.statistics).__name__
        text = json.dumps(["lepton/evaluation/v1", self.model, self.task.name, kind, parameters])
        return hashlib.sha256(text.encode()).hexdigest()


def figure_cells(
    bins: int, task: Task, classes: int, input_shape: Shape, model: Digest
) -> FigureCells:
    """Returns the layout of an evaluation's sum.

    Args:
        bins: of each histogram of scores.
        task: what the model was trained for.
        classes: number of label values, or of tokens.
        input_shape: shape of one record's features.
        model: digest of the model's layout.
    """
    return FigureCells(task, statistics_of(task, classes, input_shape, bins), model)


def named(model: Vector, run: str, *, private: bool) -> Vector:
    """Returns a model as it is sent for an evaluation, float32, shape [size] or [size + 8].

    With privacy it is named by its run, so that each of several evaluations is another query,
    which is charged. Without, it is the model alone: sites take no second sum on the same one,
    whose difference from the first could be one site's part.
    """
    return np.concatenate([model, probe_of(run, _NAME)]) if private else model


def weights_of(received: NDArray[np.float32], *, private: bool) -> Vector:
    """Returns the model in what was sent."""
    return received[:-_NAME] if private else received
