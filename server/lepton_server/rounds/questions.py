"""What a query is about: the sites' records, or a model on the records that they hold back."""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from lepton_common.arrays import Layout, Vector, digest_of
from lepton_common.asking import statistics_query
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Dataset
from lepton_common.durable import link_atomic
from lepton_common.errors import RunNotFound, SettingsError
from lepton_common.evaluation.noised import noised_figures
from lepton_common.models.catalog import build_model
from lepton_common.settings import Settings
from lepton_common.statistics import Cells, StatisticsQuery, cells_of, column_names
from lepton_common.strict import Digest
from lepton_common.tasks.catalog import Task, find_task
from lepton_common.tasks.sums import FigureCells, figure_cells, named
from lepton_server.rounds.figures import NoisyCells
from lepton_server.run_folder import RunFolder


class Layouts(Protocol):
    """How a sum is laid out."""

    @property
    def size(self) -> int:
        """d, number of values in the sum."""

    @property
    def blocks(self) -> int:
        """Number of parts whose norm is 1 at most for each person."""

    @property
    def digest(self) -> Digest:
        """Names the layout."""


class Question(Protocol):
    """What is asked of all sites at once."""

    @property
    def cells(self) -> Layouts:
        """The layout of the sum."""

    @property
    def dataset(self) -> Dataset:
        """What is publicly known of the data."""

    @property
    def named(self) -> dict[str, str]:
        """What the server's log says beside the answer."""

    def sent(self, run: str, *, private: bool) -> Vector:
        """Returns what goes to the sites where a model would, float32."""

    def told(
        self, total: NDArray[np.float64], norm: float | None, noise: float | None
    ) -> dict[str, Any]:
        """Returns what the sum tells, as plain values.

        Args:
            total: of all sites, shape [d].
            norm: most that a person adds to it; None without privacy.
            noise: standard deviation of the noise on each value; likewise.
        """


@dataclass(frozen=True)
class AboutRecords:
    """Counts, labels and the distribution of each feature; always with privacy."""

    task: Task
    dataset: Dataset
    cells: Cells

    @property
    def named(self) -> dict[str, str]:
        """Nothing: what is asked is in the configuration."""
        return {}

    def sent(self, run: str, *, private: bool) -> Vector:
        """Returns numbers that name the query; see `Question`."""
        return self.cells.probe(run)

    def told(
        self, total: NDArray[np.float64], norm: float | None, noise: float | None
    ) -> dict[str, Any]:
        """Returns what the sum tells of the records; see `Question`."""
        assert norm is not None, "settings refuse statistics without"
        assert noise is not None, "likewise"
        sums = NoisyCells.of(self.cells, total / norm, noise / norm)
        return {
            "people": sums.people(),
            "label": self.task.label,
            "labels": sums.labels(),
            "range": [-1.0, 1.0],
            "features": sums.columns(column_names(self.cells, self.dataset)),
        }


@dataclass(frozen=True)
class AboutModel:
    """The figures of a model."""

    task: Task
    dataset: Dataset
    cells: FigureCells
    weights: Vector
    run: str
    file: Digest

    @property
    def named(self) -> dict[str, str]:
        """Names the model's file."""
        return {"model_file": self.file}

    def sent(self, run: str, *, private: bool) -> Vector:
        """Returns the model, named; see `Question`."""
        return named(self.weights, run, private=private)

    def told(
        self, total: NDArray[np.float64], norm: float | None, noise: float | None
    ) -> dict[str, Any]:
        """Returns what the sum tells of the model; see `Question`."""
        unit = 1.0 if norm is None else norm * self.cells.scale
        kind = self.cells.statistics
        people, figures = noised_figures(kind, total / unit, (noise or 0.0) / unit)
        return {
            "people": people,
            "evaluates": self.run,
            "model_file": self.file,
            "headline": self.task.headline.name,
            "figures": figures,
        }


def question_of(settings: Settings, folder: RunFolder) -> Question:
    """Returns what a run asks; of a model, a copy of it stays in the run's folder.

    Raises:
        SettingsError: nothing is asked, or a feature that there is not.
        RunNotFound: the run whose model shall be evaluated has none here.
    """
    task, data, query = find_task(settings.task), settings.data, statistics_query(settings)
    if query is None:
        raise SettingsError("statistics.asked=false: there is nothing to ask.")
    dataset = load_dataset(task.dataset, data.root, data.prepare)
    if isinstance(query, StatisticsQuery):
        return AboutRecords(task, dataset, cells_of(query, dataset))
    run = settings.statistics.evaluates
    assert run is not None, "else the query were about records"
    outputs = task.outputs(dataset.classes, dataset.input_shape)
    layout = Layout.of(build_model(settings.model, dataset.input_shape, outputs))
    cells = figure_cells(query.bins, task, dataset.classes, dataset.input_shape, layout.digest)
    weights, file = _model_of(run, folder, layout)
    return AboutModel(task, dataset, cells, weights, run, file)


def _model_of(run: str, folder: RunFolder, layout: Layout) -> tuple[Vector, Digest]:
    """Returns a run's last model, and the digest of its file; the run lies beside this one."""
    path = folder.evaluated
    try:
        if not path.exists():
            link_atomic(RunFolder(folder.path.parent / run).final_model, path)
        arrays, file = load_file(path), digest_of(path.read_bytes())
        weights = layout.join([arrays[name] for name in layout.names])
    except (OSError, SafetensorError, KeyError) as error:
        raise RunNotFound(
            f"The run {run} has no model here that could be evaluated; 'lepton runs' lists them."
        ) from error
    return weights, file
