"""Boosted trees from the command line: made-up records by default, published ones by hand."""

import numpy as np
import pytest

import lepton_cli
from lepton_cli.compose import compose_settings
from lepton_cli.groups import groups
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import SettingsError
from lepton_common.tasks.catalog import find_task


def grown(task, tmp_path, *words):
    """Returns a finished run of trees over three sites."""
    return lepton_cli.simulate(
        f"task={task}", "model=boosted_trees", "sites=3", "data.partition=iid",
        f"runs={tmp_path}", *words,
    )  # fmt: skip


def guess(task, root):
    """What the most frequent label, the mean, or guessing comes to on the test set."""
    data = load_dataset(task, root, "public_ranges")
    train, test = data.train.labels.numpy(), data.test.labels.numpy()
    if task == "wine_quality":
        return float(np.sqrt(((test - train.mean()) ** 2).mean()) * 5)  # of ten marks
    if find_task(task).headline.name == "pr_auc":
        return float(test.mean())
    values, counts = np.unique(train, return_counts=True)
    return float((test == values[counts.argmax()]).mean())


def test_trees_beat_the_simplest_guess_as_they_would_on_all_records_together(tmp_path):
    run = grown("german_credit", tmp_path, "privacy=none", "secagg=none", "data.root=made-up",
                "rounds=6", "trees.depth=2", "baselines=true")  # fmt: skip
    assert run.reached > guess("german_credit", "made-up") + 0.03
    assert run.settings.model == "boosted_trees.3x2b32"
    assert dict(run.model().named_parameters())["levels"].item() == 6
    assert run.baselines["pooled"] == pytest.approx(run.reached, abs=0.003)
    assert len(run.baselines["local"]) == 3
    assert all(alone != pytest.approx(run.reached) for alone in run.baselines["local"].values())


@pytest.mark.slow
def test_private_ones_beat_it_too_and_say_what_they_spent(tmp_path):
    words = ["privacy=distributed", "privacy.epsilon=20", "data.root=made-up", "rounds=4",
             "trees.depth=2", "trees.bins=8", "secagg.colluders=0"]  # fmt: skip
    run = grown("wine_quality", tmp_path, *words)
    assert run.reached < 0.97 * guess("wine_quality", "made-up")
    assert all(0 < spent <= 20 for spent in run.evidence.totals.spent.values())
    assert set(run.evidence.totals.bytes_left) == {"public", "protocol", "secagg+dp"}
    assert "DP histograms" in (run.folder.path / "model_card.md").read_text()


@pytest.mark.parametrize("mode", ["none", "record", "distributed"])
def test_every_mode_that_trees_offer_has_a_recipe(mode):
    assert f"boosted_trees_{mode}" in groups()["growth"]
    settings = compose_settings(["task=credit_default", "model=boosted_trees", f"privacy={mode}"])
    trees = -(-settings.rounds // 3)
    assert settings.model == f"boosted_trees.{trees}x3b{32 if mode == 'none' else 16}"
    assert settings.strategy.name == "fedavg"
    assert mode == "none" or settings.train.local_steps == 1


def test_numbers_that_are_none_are_named():
    with pytest.raises(SettingsError) as refused:
        compose_settings(["task=adult", "model=boosted_trees", "trees.bins=many", "trees.depth=9"])
    assert "trees.bins='many'" in str(refused.value)
    assert "trees.depth=9" in str(refused.value)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["credit_default", "ai4i"])
def test_trees_beat_logistic_regression_on_real_records(task, shared_data, tmp_path):
    words = [f"data.root={shared_data}", "privacy=none", "secagg=none"]
    trees = grown(task, tmp_path, *words)
    linear = lepton_cli.simulate(
        f"task={task}", "model=logistic", "sites=3", "data.partition=iid", f"runs={tmp_path}",
        *words,
    )  # fmt: skip
    assert trees.reached > linear.reached
    assert trees.reached > guess(task, str(shared_data)) + 0.02
