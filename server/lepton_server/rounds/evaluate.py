"""Judges each round's model on data that no site trained on, and keeps the last and the best."""

import json

import numpy as np
import torch
from safetensors.numpy import save

from lepton_common.arrays import Layout, Vector, image_order, read_parameters, write_parameters
from lepton_common.datasets.catalog import load_dataset
from lepton_common.device import pick_device
from lepton_common.durable import link_atomic, write_atomic
from lepton_common.models.catalog import initial_model
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import find_task
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.run_folder import RunFolder


class Evaluator:
    """The server's model and its held-back test set: public figures, which cost no privacy."""

    def __init__(self, settings: Settings) -> None:
        """Loads the test set and builds the model.

        Raises:
            DataError: the data is missing or invalid.
        """
        self._settings = settings
        self._task = find_task(settings.task)
        data = load_dataset(self._task.dataset, settings.data.root, settings.data.prepare)
        outputs = self._task.outputs(data.classes)
        self._model = initial_model(settings.model, data.input_shape, outputs, settings.seed)
        self.layout = Layout.of(self._model)
        self._device = pick_device(settings.train.device)
        image_order(self._model).to(self._device)
        self._features = data.test.features.to(self._device)
        self._labels = data.test.labels.to(self._device)
        self._origins = data.test.origins

    def initial_vector(self) -> Vector:
        """Returns the model that the run's seed gives, float32, shape [d]; before any is judged."""
        initial: Vector = read_parameters(self._model).cpu().numpy()
        return initial

    def evaluate(self, vector: Vector) -> dict[str, float]:
        """Returns accuracy and loss of a model on the test set.

        Where the test set's records come from natural sites, also the mean of the sites' own
        accuracies, in which a small site counts as much as a large one.
        """
        write_parameters(self._model, torch.from_numpy(vector).to(self._device))
        metrics = self._task.evaluate(self._model, self._features, self._labels)
        if self._origins is None:
            return metrics
        each = []
        for origin in np.unique(self._origins):
            own = torch.from_numpy(np.flatnonzero(self._origins == origin)).to(self._device)
            found = self._task.evaluate(self._model, self._features[own], self._labels[own])
            each.append(found["accuracy"])
        return metrics | {"site_mean_accuracy": sum(each) / len(each)}

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
        """Writes the last model, and as the best one if the test set's accuracy says so."""
        write_atomic(folder.final_model, self.model_file(folder.path.name, state))
        accuracies = [entry["metrics"]["accuracy"] for entry in state.history]
        if int(np.argmax(accuracies)) == len(accuracies) - 1:
            link_atomic(folder.final_model, folder.best_model)
