"""The training of many clients at once, alone: no site, no door, no server."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lepton_cli.bench.simulation.jobs import Job
from lepton_cli.compose import compose_settings
from lepton_client.training.many import train_plain_many
from lepton_client.training.resident import resident_model
from lepton_common.arrays import Vector, read_parameters
from lepton_common.asking import recipe
from lepton_common.datasets.catalog import load_dataset
from lepton_common.models.catalog import initial_model
from lepton_common.tasks.catalog import find_task


class Kernel:
    """Rounds of plain averaging around the kernel.

    Attributes:
        weights: of the model after the rounds so far, float32, shape [d].
    """

    def __init__(self, job: Job, data: Path) -> None:
        """Loads the job's data and makes its model."""
        self._job, self._task = job, find_task(job.name)
        dataset = load_dataset(job.name, str(data), "public_ranges")
        self._data, outputs = (
            dataset.train,
            self._task.outputs(dataset.classes, dataset.input_shape),
        )
        self._recipe = recipe(replace(compose_settings(job.overrides(data)), task=job.name), 1)
        self._model = resident_model(
            job.model, job.shape, outputs, torch.device("cpu"), channels_last=False
        )
        first = read_parameters(initial_model(job.model, job.shape, outputs, seed=1))
        self.weights: Vector = first.numpy()

    def round(self, clients: list[int], seeds: list[int]) -> None:
        """Runs one round; see `bare.BareLoop.round`.

        Raises:
            FloatingPointError: training diverged.
        """
        size = self._job.records
        rows = [np.arange(client * size, (client + 1) * size) for client in clients]
        trained = train_plain_many(
            self._model, self._task, self._data, rows, self.weights, self._recipe, seeds
        )
        if trained.diverged.any():
            raise FloatingPointError("Training diverged in the benchmark.")
        self.weights = self.weights + trained.updates.mean(axis=0, dtype=np.float32)
