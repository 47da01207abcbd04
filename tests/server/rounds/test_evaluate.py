"""Tests of how the server judges a model."""

import numpy as np
import pytest
import torch

from lepton_common.datasets.catalog import DATASETS, load_dataset
from lepton_common.datasets.records import Dataset, Records
from lepton_common.tasks.catalog import TASKS, Task
from lepton_server.rounds.evaluate import Evaluator


@pytest.fixture
def hospitals():
    """Adds a task whose test set comes from two sites: eight easy records, and two wrong ones."""
    features = torch.tensor([[1.0]] * 8 + [[1.0], [-1.0]])
    labels = torch.tensor([1] * 8 + [0, 0])
    test = Records(features, labels, origins=np.array([0] * 8 + [1] * 2))
    DATASETS["hospitals"] = lambda root, prepare: Dataset("hospitals", test, test, (1,), 2)
    TASKS["hospitals"] = Task("hospitals", "hospitals", "binary", "nothing")
    yield
    del DATASETS["hospitals"], TASKS["hospitals"]
    load_dataset.cache_clear()


@pytest.mark.usefixtures("hospitals")
def test_a_small_site_counts_as_much_as_a_large_one_in_the_mean_over_sites(make_settings):
    evaluator = Evaluator(make_settings({"task": "hospitals", "model": "logistic"}))
    # Positive for positive features: right for the first site, for one of two at the second.
    metrics = evaluator.evaluate(np.array([1.0, 0.0], np.float32))
    assert metrics["accuracy"] == pytest.approx(0.9)
    assert metrics["site_mean_accuracy"] == pytest.approx(0.75)


def test_without_natural_sites_there_is_no_such_mean(make_settings):
    evaluator = Evaluator(make_settings({"task": "digits"}))
    assert set(evaluator.evaluate(evaluator.initial_vector())) == {"accuracy", "loss"}
