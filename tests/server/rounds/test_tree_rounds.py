"""Trees grown by a whole federation: as on all records in one place, whatever crashes."""

import numpy as np
import pytest
import torch

from lepton_client.training.resident import resident_model
from lepton_client.training.trees import plain_sums
from lepton_common.arrays import Layout, read_parameters
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import LeptonError
from lepton_common.models.catalog import initial_model
from lepton_common.tasks.catalog import find_task
from lepton_server.rounds.gathered import Means
from lepton_server.strategies.catalog import make_strategy

TREES = {
    "task": "ai4i", "data.root": "made-up", "data.partition": "iid", "sites": 3, "rounds": 3,
    "model": "boosted_trees.2x2b8", "trees.depth": 2, "trees.bins": 8,
}  # fmt: skip


@pytest.fixture
def pooled(make_settings):
    """Returns the trees that are grown of all training records in one place, by name."""
    settings = make_settings(TREES)
    data = load_dataset("ai4i", "made-up", "public_ranges")
    shape = data.input_shape
    module = initial_model(settings.model, shape, 1, settings.seed)
    own = resident_model(settings.model, shape, 1, torch.device("cpu"), channels_last=False)
    layout, vector = Layout.of(module), read_parameters(module).numpy()
    strategy = make_strategy(settings, layout)
    for round_ in (1, 2, 3):
        sums, _ = plain_sums(own, find_task("ai4i"), data.train, vector)
        vector = strategy.step(round_, vector, Means([sums], 1))
    return layout, layout.split(vector)


@pytest.mark.parametrize("mode", ["none", "sa1"])
def test_the_federations_trees_are_those_of_all_records_in_one_place(simulate, pooled, mode):
    layout, expected = pooled
    found = layout.split(simulate(changes={**TREES, "secagg.mode": mode}))
    assert found["thresholds"].min() < 7  # nodes were split
    for name in ("features", "thresholds", "levels", "salt"):
        assert np.array_equal(found[name], expected[name])
    assert found["leaves"] == pytest.approx(expected["leaves"], abs=1e-5)
    assert found["base"] == pytest.approx(expected["base"], abs=1e-5)
    reports = simulate.reports()
    losses = [report.metrics["loss"] for report in reports]
    assert losses[-1] < losses[0]
    if mode == "sa1":
        assert reports[-1].metrics["train_loss"] < reports[0].metrics["train_loss"]


def test_a_run_that_broke_goes_on_to_the_same_trees(simulate):
    plain = {**TREES, "secagg.mode": "none"}
    asked = []

    def fails(site, stage):
        asked.append(stage)
        return "before" if asked.count("mask") > 3 else None  # from the second round on

    with pytest.raises(LeptonError):
        simulate("broken", plain, fails=fails)
    assert len(simulate.reports("broken")) == 1
    assert np.array_equal(simulate("broken", plain), simulate("whole", plain))


def test_with_shared_noise_sites_are_charged_for_each_level_and_trees_still_learn(simulate):
    shared = {
        **TREES, "task": "wine_quality", "rounds": 2, "secagg.mode": "sa1",
        "privacy.mode": "distributed", "privacy.epsilon": 20.0, "privacy.delta": 1e-5,
        "train.local_epochs": None, "train.local_steps": 1, "federation.weights": "public_size",
        "model": "boosted_trees.1x2b8",
    }  # fmt: skip
    simulate("noisy", shared)
    first, second = simulate.reports("noisy")
    assert second.metrics["rmse"] < first.metrics["rmse"]
    assert "train_loss" not in second.metrics
    assert all(0 < first.epsilon[site] < second.epsilon[site] <= 20.0 for site in second.epsilon)
