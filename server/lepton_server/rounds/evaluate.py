"""Judges each round's model on data that no site trained on, and keeps the last and the best."""

import json
from functools import partial

import numpy as np
import torch
from safetensors.numpy import save

from lepton_common.arrays import (
    Layout,
    Vector,
    lend_parameters,
    read_parameters,
    take_back_parameters,
)
from lepton_common.datasets.catalog import load_dataset
from lepton_common.device import pick_device
from lepton_common.durable import link_atomic, write_atomic
from lepton_common.errors import DataInvalid
from lepton_common.models.catalog import build_model, initial_model
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import find_task
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.run_folder import RunFolder


class Evaluator:
    """The server's model and its held-back test set: public figures, which cost no privacy.

    Its model has no weights of its own: those that it judges are lent to it.
    """

    def __init__(self, settings: Settings) -> None:
        """Loads the test set and builds the model.

        Raises:
            DataError: the data is missing or invalid.
        """
        self._settings = settings
        self._task = find_task(settings.task)
        data = load_dataset(self._task.dataset, settings.data.root, settings.data.prepare)
        kind = settings.model, data.input_shape, self._task.outputs(data.classes, data.input_shape)
        self._initial = partial(initial_model, *kind, settings.seed)
        self._device = pick_device(settings.train.device)
        self._model = build_model(*kind).to(self._device)
        self.layout = Layout.of(self._model)
        take_back_parameters(self._model)
        self._features = data.test.features.to(self._device)
        self._labels = data.test.labels.to(self._device)
        self._origins = data.test.origins

    def initial_vector(self) -> Vector:
        """Returns the model that the run's seed gives, float32, shape [d]."""
        initial: Vector = read_parameters(self._initial()).numpy()
        return initial

    def evaluate(self, vector: Vector) -> dict[str, float]:
        """Returns a model's figures on the test set.

        Where the test set's records come from natural sites, also the mean of the headline over
        those that define it, in which a small site counts as much as a large one.
        """
        lend_parameters(self._model, self.layout, torch.from_numpy(vector).to(self._device))
        try:
            return self._evaluate()
        finally:
            take_back_parameters(self._model)

    def model_file(self, run: str, state: Checkpoint) -> bytes:
        """Returns a state's model as safetensors: parameters by name, and what it is."""
        facts = {
            "task": self._settings.task,
            "model": self._settings.model,
            "run": run,
            "round": str(state.round),
            "metrics": json.dumps(state.history[-1]["metrics"]),
        }
        # The header's order of facts is safetensors' own and not fixed, so there is only one.
        return save(self.layout.split(state.result), {"lepton": json.dumps(facts)})

    def save_models(self, folder: RunFolder, state: Checkpoint) -> None:
        """Writes the last model, and as the best one if the test set's headline says so."""
        write_atomic(folder.final_model, self.model_file(folder.path.name, state))
        headline = self._task.headline
        reached = [entry["metrics"][headline.name] for entry in state.history]
        if headline.best(reached) == len(reached) - 1:
            link_atomic(folder.final_model, folder.best_model)

    def _evaluate(self) -> dict[str, float]:
        metrics = self._task.evaluate(self._model, self._features, self._labels)
        if self._task.headline.name not in metrics:
            raise DataInvalid(
                f"The test set does not define the {self._task.headline.title}; its labels are all "
                "alike, or too few: check it."
            )
        if self._origins is None:
            return metrics
        each, name = [], self._task.headline.name
        for origin in np.unique(self._origins):
            own = torch.from_numpy(np.flatnonzero(self._origins == origin)).to(self._device)
            found = self._task.evaluate(self._model, self._features[own], self._labels[own])
            if name in found:
                each.append(found[name])
        return metrics | ({f"site_mean_{name}": sum(each) / len(each)} if each else {})
