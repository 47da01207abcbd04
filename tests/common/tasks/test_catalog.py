"""Tests of tasks: losses record by record, and figures as scikit-learn computes them."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from lepton_common.datasets.catalog import DATASETS
from lepton_common.errors import UnknownName
from lepton_common.tasks.catalog import TASKS, find_task


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def _records(task, count, generator):
    classes = 2 if task.learns == "binary" else 4
    logits = 3 * torch.randn(count, task.outputs(classes, ()), generator=generator)
    return logits, torch.randint(0, classes, (count,), generator=generator)


@pytest.mark.parametrize("name", ["digits", "heart_disease"])
def test_a_records_loss_depends_on_that_record_only(name, generator):
    task = find_task(name)
    logits, labels = _records(task, 6, generator)
    before = task.losses(logits, labels)
    assert before.shape == (6,)
    logits[2] = -5 * logits[2]
    labels[4] = (labels[4] + 1) % 2
    changed = (task.losses(logits, labels) != before).nonzero().ravel().tolist()
    assert changed == [2, 4]


def test_losses_are_those_of_the_definition(generator):
    logits, labels = _records(find_task("digits"), 5, generator)
    probabilities = logits.double().softmax(dim=1)
    expected = -probabilities[torch.arange(5), labels].log()
    torch.testing.assert_close(find_task("digits").losses(logits, labels).double(), expected)
    logits, labels = _records(find_task("heart_disease"), 5, generator)
    chance = logits.double().squeeze(1).sigmoid()
    expected = -torch.where(labels == 1, chance, 1 - chance).log()
    torch.testing.assert_close(find_task("heart_disease").losses(logits, labels).double(), expected)


@pytest.mark.parametrize("name", ["digits", "heart_disease"])
@pytest.mark.parametrize("count", [1, 999, 1000, 2345])
def test_evaluation_agrees_with_scikit_learn(name, count, generator):
    task = find_task(name)
    logits, labels = _records(task, count, generator)
    figures = task.evaluate(nn.Identity(), logits, labels)
    assert set(figures) == {"accuracy", "loss"}
    if task.learns == "binary":
        ones = logits.double().sigmoid().numpy()
        shares = np.hstack([1 - ones, ones])
    else:
        shares = logits.double().softmax(dim=1).numpy()
    accuracy = metrics.accuracy_score(labels.numpy(), shares.argmax(axis=1))
    loss = metrics.log_loss(labels.numpy(), shares, labels=range(shares.shape[1]))
    assert figures["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert figures["loss"] == pytest.approx(loss, rel=1e-5)


def test_evaluation_runs_the_model_in_evaluation_mode(generator):
    model = nn.Sequential(nn.Dropout(0.9)).train()
    logits, labels = _records(find_task("digits"), 50, generator)
    figures = find_task("digits").evaluate(model, logits, labels)
    assert figures == find_task("digits").evaluate(nn.Identity(), logits, labels)


def test_a_task_knows_how_many_logits_it_needs():
    assert find_task("digits").outputs(10, (8,)) == 10
    assert find_task("heart_disease").outputs(2, (8,)) == 1


def test_every_task_names_a_data_set_that_there_is():
    for name, task in TASKS.items():
        assert task.name == name
        assert task.dataset in DATASETS


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(UnknownName, match="did you mean 'digits'"):
        find_task("digit")
