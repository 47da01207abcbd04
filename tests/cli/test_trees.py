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


@pytest.mark.parametrize("task", ["german_credit", "wine_quality"])
def test_trees_beat_the_simplest_guess_on_made_up_records(task, tmp_path):
    run = grown(task, tmp_path, "privacy=none", "secagg=none", "data.root=made-up", "rounds=12")
    best = guess(task, "made-up")
    assert run.reached < 0.9 * best if task == "wine_quality" else run.reached > best + 0.03
    assert run.settings.model == "boosted_trees.4x3b32"
    parts = dict(run.model().named_parameters())
    assert parts["levels"].item() == 12


def test_private_ones_beat_it_too_and_say_what_they_spent(tmp_path):
    words = ["privacy=distributed", "privacy.epsilon=20", "data.root=made-up", "rounds=4",
             "trees.depth=2", "trees.bins=8", "secagg.colluders=0"]  # fmt: skip
    run = grown("wine_quality", tmp_path, *words)
    assert run.reached < 0.97 * guess("wine_quality", "made-up")
    assert all(0 < spent <= 20 for spent in run.evidence.totals.spent.values())
    assert set(run.evidence.totals.bytes_left) == {"public", "protocol", "secagg+dp"}
    assert "DP histograms" in (run.folder.path / "model_card.md").read_text()


def test_every_mode_that_trees_offer_has_a_recipe():
    for mode in ("none", "record", "distributed"):
        assert f"boosted_trees_{mode}" in groups()["growth"]
        for task in ("credit_default", "ai4i", "adult", "german_credit", "wine_quality"):
            settings = compose_settings([f"task={task}", "model=boosted_trees", f"privacy={mode}"])
            assert settings.model.startswith("boosted_trees.")
            assert settings.train.local_steps == (None if mode == "none" else 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task=digits"], "No trees are grown for task=digits"),
        (
            ["task=adult", "strategy=fedadam"],
            "grown from sums, not averaged: drop strategy=fedadam",
        ),
        (["task=adult", "strategy.average_decay=0.9"], "strategy.average_decay"),
        (["task=adult", "privacy=site"], "protects people, not sites"),
        (["task=adult", "privacy=none", "secagg.rotate=true"], "people, who count alike"),
        (["task=adult", "train.local_steps=2"], "one private sum a round"),
        (["task=adult", "trees.depth=9"], "trees.depth=9"),
        (["task=adult", "trees.bins=many"], "trees.bins='many'"),
    ],
)
def test_what_does_not_go_with_trees_is_one_sentence(words, said):
    with pytest.raises(SettingsError) as refused:
        compose_settings(["model=boosted_trees", *words])
    assert said in str(refused.value)


def test_one_tree_for_every_so_many_rounds(tmp_path):
    words = ["task=adult", "model=boosted_trees", "privacy=none", "trees.depth=4", "rounds=9"]
    assert compose_settings(words).model == "boosted_trees.3x4b32"


def test_baselines_are_grown_as_the_federation_is(tmp_path):
    run = grown("wine_quality", tmp_path, "privacy=none", "secagg=none", "data.root=made-up",
                "rounds=4", "baselines=true", "trees.depth=2", "trees.bins=8")  # fmt: skip
    assert run.baselines["pooled"] == pytest.approx(run.reached, abs=1e-3)
    assert len(run.baselines["local"]) == 3
    assert all(alone != pytest.approx(run.reached) for alone in run.baselines["local"].values())


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
