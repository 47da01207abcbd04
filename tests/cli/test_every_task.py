"""Every task trains a few rounds, on what is embedded or made up, and beats the simplest guess."""

import numpy as np
import pytest

from lepton_cli.compose import compose_settings
from lepton_cli.groups import groups
from lepton_cli.simulation import start
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.source import MADE_UP
from lepton_common.tasks.catalog import TASKS

# Rounds that are enough to see it; a recipe's own go on for longer.
ROUNDS = {
    "cifar10_subset": 3, "omniglot": 2, "pneumoniamnist": 6, "tcga_brca": 1, "tcga_brca_hazard": 4,
    "adult": 4, "german_credit": 3, "credit_default": 6, "exchange_rate": 5, "demand": 3,
    "ai4i": 2, "wine_quality": 5, "cmapss": 2, "machine_anomaly": 5, "tones": 6, "uci_har": 8,
    "sms_spam": 5, "shakespeare": 1, "digits": 4, "breast_cancer": 5,
    "mnist": 2, "fashion_mnist": 4, "cifar10": 3, "heart_disease": 8,
}  # fmt: skip


def baseline(task, dataset):
    """What the most frequent label, the mean, or guessing comes to on the test set."""
    labels, name = dataset.test.labels.numpy(), task.headline.name
    train = dataset.train.labels.numpy()
    if name == "accuracy":
        values, counts = np.unique(train, return_counts=True)
        return float((labels == values[counts.argmax()]).mean())
    if name == "rmse":
        low, high, _ = task.scale
        return float(np.sqrt(((labels - train.mean()) ** 2).mean()) * (high - low) / 2)
    return float(labels.mean()) if name == "pr_auc" else 0.5


def trained(task, words, tmp_path):
    """The figure that the last round's model reaches over three sites, and the guess's."""
    settings = compose_settings(
        [f"task={task.name}", "sites=3", "data.partition=iid", "secagg=none", f"runs={tmp_path}",
         *words]
    )  # fmt: skip
    run = start(settings)
    dataset = load_dataset(task.dataset, settings.data.root, settings.data.prepare)
    return run.reached, baseline(task, dataset)


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_beats_the_simplest_guess(name, tmp_path):
    task = TASKS[name]
    words = ["privacy=none", f"data.root={MADE_UP}", f"rounds={ROUNDS[name]}"]
    reached, guess = trained(task, words, tmp_path)
    margin = 0.02 if task.headline.top == 1.0 else 0.1 * guess
    assert reached > guess + margin if task.headline.higher else reached < guess - margin


@pytest.mark.parametrize(
    "name",
    ["ai4i", *(pytest.param(name, marks=pytest.mark.slow)
               for name in ("adult", "german_credit", "credit_default"))],
)  # fmt: skip
def test_so_does_a_private_one(name, tmp_path):
    words = ["privacy=record", "privacy.epsilon=8", f"data.root={MADE_UP}", "rounds=8"]
    reached, guess = trained(TASKS[name], words, tmp_path)
    assert reached > guess + 0.02


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_has_a_model_and_a_recipe_for_every_mode_that_it_offers(name):
    modes = ["record"] if TASKS[name].objective.apart else ["none"]
    for mode in modes:
        assert f"{name}_{mode}" in groups()["recipe"]


REAL_ROUNDS = {
    "mnist": 1, "fashion_mnist": 1, "cifar10_subset": 2, "pneumoniamnist": 5, "omniglot": 3,
    "heart_disease": 10, "tcga_brca": 5, "tcga_brca_hazard": 10, "adult": 3, "german_credit": 20,
    "credit_default": 6, "exchange_rate": 10, "ai4i": 8, "wine_quality": 8, "cmapss": 15,
    "machine_anomaly": 6, "uci_har": 6, "sms_spam": 3, "shakespeare": 1,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(REAL_ROUNDS))
def test_a_task_beats_the_simplest_guess_on_real_data(name, shared_data, tmp_path):
    task = TASKS[name]
    words = ["privacy=none", f"data.root={shared_data}", f"rounds={REAL_ROUNDS[name]}"]
    reached, guess = trained(task, words, tmp_path)
    assert reached > guess + 0.01 if task.headline.higher else reached < 0.95 * guess
