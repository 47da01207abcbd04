"""Growing trees from sums: against scikit-learn's own, and what the model keeps of each level."""

import numpy as np
import pytest
import torch
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from lepton_client.training.resident import resident_model
from lepton_client.training.trees import plain_sums
from lepton_common.arrays import Layout, read_parameters, write_parameters
from lepton_common.datasets.records import Records
from lepton_common.errors import ModelMismatch, PlanError, SettingsError
from lepton_common.messages import SiteFacts
from lepton_common.models.catalog import initial_model
from lepton_common.tasks.catalog import find_task
from lepton_server.rounds.gathered import Means
from lepton_server.strategies.catalog import make_strategy

FEATURES, BINS = 5, 16
FORM = {"model": "boosted_trees.4x3b16", "trees.depth": 3, "trees.bins": BINS, "rounds": 12}


def records_of(task, count=600, seed=0):
    """Returns records whose features are middles of bins, and labels that follow from some."""
    rng = np.random.default_rng(seed)
    features = (2 * rng.integers(BINS, size=(count, FEATURES)) + 1) / BINS - 1
    sums = 2 * features[:, 0] - 3 * features[:, 1] * features[:, 2] + 0.5
    if task == "adult":
        labels = torch.from_numpy((rng.random(count) < 1 / (1 + np.exp(-sums))).astype(np.int64))
    else:
        labels = torch.from_numpy(np.clip(0.15 * sums + rng.normal(0, 0.05, count), -1, 1)).float()
    return Records(torch.from_numpy(features).float(), labels)


def grown(settings, records, rounds=12, sites=1, watch=lambda module: None):
    """Grows trees on records that are split over some sites; returns the model."""
    module = initial_model(settings.model, (FEATURES,), 1, 0)
    strategy, vector = make_strategy(settings, Layout.of(module)), read_parameters(module).numpy()
    own = resident_model(settings.model, (FEATURES,), 1, torch.device("cpu"), channels_last=False)
    task = find_task(settings.task)
    parts = [records.take(np.arange(at, len(records), sites)) for at in range(sites)]
    for round_ in range(1, rounds + 1):
        sums = [plain_sums(own, task, part, vector)[0] for part in parts]
        mean = np.mean(np.array(sums, np.float64), axis=0).astype(np.float32)
        vector = strategy.step(round_, vector, Means([mean], sites))
        write_parameters(module, torch.from_numpy(vector))
        watch(module)
    return module


@pytest.mark.parametrize("task", ["adult", "wine_quality"])
def test_the_trees_are_those_of_scikit_learn(make_settings, task):
    settings = make_settings({**FORM, "task": task, "trees.l2": 0.7})
    records = records_of(task)
    module = grown(settings, records)
    kind = HistGradientBoostingClassifier if task == "adult" else HistGradientBoostingRegressor
    theirs = kind(
        learning_rate=0.3, max_iter=4, max_depth=3, max_leaf_nodes=None, min_samples_leaf=1,
        l2_regularization=0.7, max_bins=255, early_stopping=False,
    )  # fmt: skip
    features, labels = records.features.numpy(), records.labels.numpy()
    theirs.fit(features, labels)
    # Ours asks for a weight of 1 on each side; here no split that both could take has less.
    predicted = theirs.decision_function(features) if task == "adult" else theirs.predict(features)
    with torch.no_grad():
        found = module(records.features)[:, 0].numpy()
    assert found == pytest.approx(predicted, abs=2e-5)
    assert len(np.unique(found.round(4))) > 20


@pytest.mark.parametrize(("task", "sites"), [("adult", 3), ("wine_quality", 2)])
def test_it_does_not_matter_where_records_are(make_settings, task, sites):
    settings = make_settings({**FORM, "task": task})
    pooled = grown(settings, records_of(task))
    split = grown(settings, records_of(task), sites=sites)
    assert torch.equal(pooled.features, split.features)
    assert torch.equal(pooled.thresholds, split.thresholds)
    assert split.leaves.detach().numpy() == pytest.approx(pooled.leaves.detach().numpy(), abs=1e-5)


def test_each_round_adds_a_level_and_predicts_better(make_settings):
    settings, records = make_settings({**FORM, "task": "adult"}), records_of("adult")
    task, losses = find_task("adult"), []

    def watch(module):
        with torch.no_grad():
            losses.append(float(task.losses(module(records.features), records.labels).mean()))
        assert module.levels.item() == len(losses)

    module = grown(settings, records, watch=watch)
    assert len(losses) == 12
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 0.08
    assert module.importance[:3].min() > 2 * module.importance[3:].max()


def test_the_base_is_the_log_odds_and_costs_no_round(make_settings):
    settings, records = make_settings({**FORM, "task": "adult"}), records_of("adult")
    module = grown(settings, records, 1)
    share = records.labels.double().mean()
    assert module.base.item() == pytest.approx(float(torch.log(share / (1 - share))), abs=1e-5)


def test_a_tree_of_which_nothing_can_be_split_is_one_leaf(make_settings):
    settings = make_settings({**FORM, "task": "adult", "trees.min_gain": 1e6})
    module = grown(settings, records_of("adult"), 3)
    assert bool((module.thresholds == BINS - 1).all())
    assert module.levels.item() == 3  # and yet another model, on which sites take another sum
    with torch.no_grad():
        assert len(module(records_of("adult").features).unique()) == 1


def test_a_level_is_grown_of_the_model_that_it_follows(make_settings):
    settings = make_settings({**FORM, "task": "adult"})
    module = initial_model(settings.model, (FEATURES,), 1, 0)
    strategy, vector = make_strategy(settings, Layout.of(module)), read_parameters(module).numpy()
    sums = Means([np.zeros(2 * 4 * FEATURES * BINS, np.float32)], 1)
    with pytest.raises(ModelMismatch, match="grows the level 2"):
        strategy.step(2, vector, sums)
    assert strategy.snapshot() == {}


def test_only_tasks_with_derivatives_are_grown_for(make_settings):
    settings = make_settings({**FORM, "task": "adult"})
    object.__setattr__(settings, "task", "tcga_brca")  # Cox' loss compares people
    with pytest.raises(SettingsError, match="No trees are grown for task=tcga_brca"):
        make_strategy(settings, Layout.of(initial_model(settings.model, (FEATURES,), 1, 0)))


def test_a_sum_that_whole_numbers_cannot_tell_is_refused_before_anybody_is_asked(make_settings):
    shared = {
        **FORM, "task": "adult", "privacy.mode": "distributed", "federation.weights": "public_size",
        "secagg.mode": "sa1", "privacy.epsilon": 50.0,
    }  # fmt: skip
    settings = make_settings(shared, private=True)
    layout = Layout.of(initial_model(settings.model, (FEATURES,), 1, 0))
    strategy = make_strategy(settings, layout)

    def cohort(size):
        site = SiteFacts(
            name="a", public_key="0" * 64, public_size=size, unit="row", audit_head="0" * 64
        )
        return [site] * 10

    strategy.check_room(cohort(1 << 10))
    with pytest.raises(PlanError, match="does not fit into whole numbers of 32 bits"):
        strategy.check_room(cohort(1 << 22))
