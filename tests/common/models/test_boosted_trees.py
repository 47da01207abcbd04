"""Trees as tensors: what a name says, how records come to leaves, what odd weights do not do."""

import numpy as np
import pytest
import torch

from lepton_common.arrays import Layout, read_parameters, write_parameters
from lepton_common.errors import SettingsError
from lepton_common.models.catalog import build_model, initial_model, model_fault
from lepton_common.models.tree_form import TreeForm, answer_size, any_form, form_of
from lepton_common.policy import SitePolicy

FORM = TreeForm(trees=3, depth=2, bins=8)


def grown(seed=0, features=4):
    """Returns trees with splits and leaves drawn at random, all of them grown."""
    model, rng = initial_model(FORM.name, (features,), 1, seed), np.random.default_rng(seed)
    drawn = {
        "features": rng.integers(features, size=(3, 3)), "thresholds": rng.integers(8, size=(3, 3)),
        "leaves": rng.normal(size=(3, 4)), "base": [0.25],
    }  # fmt: skip
    for name, values in drawn.items():
        getattr(model, name).data = torch.tensor(np.array(values), dtype=torch.float32)
    return model


def walked(model, record):
    """Follows one record down each tree, node by node."""
    total = model.base.item()
    for tree in range(FORM.trees):
        node = 0
        for _ in range(FORM.depth):
            feature = int(model.features[tree, node].item())
            bin_ = min(
                int((record[feature].clamp(-1, 1).item() + 1) * FORM.bins / 2), FORM.bins - 1
            )
            node = 2 * node + (2 if bin_ > model.thresholds[tree, node].item() else 1)
        total += model.leaves[tree, node - FORM.inner].item()
    return total


def test_a_name_says_the_form_and_the_form_how_many_values_there_are():
    assert FORM.name == "boosted_trees.3x2b8"
    assert form_of(FORM.name) == FORM
    layout = Layout.of(initial_model(FORM.name, (5, 2), 1, 0))
    assert layout.size == FORM.weights(10)
    assert answer_size(FORM.name, layout.size) == 2 * 2 * 10 * 8  # g and h, nodes, features, bins
    assert answer_size("mlp", 17) == 17
    assert FORM.levels == 6
    assert [any_form(name) for name in (FORM.name, "mlp")] == ["boosted_trees", "mlp"]


@pytest.mark.parametrize(
    "name",
    ["boosted_trees", "boosted_trees.", "boosted_trees.0x2b8", "boosted_trees.3x9b8",
     "boosted_trees.3x2b1", "boosted_trees.3x2b257", "boosted_trees.3x2b8 ", "boosted_trees.03x2b8",
     "boosted_trees.10000x2b8", "boosted_trees.٣x2b8"],
)  # fmt: skip
def test_a_name_of_another_form_is_no_model(name):
    assert model_fault(name) is not None
    with pytest.raises(SettingsError):
        build_model(name, (4,), 1)


def test_records_come_to_the_leaves_that_a_walk_comes_to():
    model, generator = grown(), torch.Generator().manual_seed(1)
    records = 2.4 * torch.rand(200, 4, generator=generator) - 1.2
    records[:9] = torch.linspace(-1, 1, 9)[:, None]  # the ends of bins
    with torch.no_grad():
        outputs = model(records)
    assert outputs.shape == (200, 1)
    assert outputs[:, 0].tolist() == pytest.approx([walked(model, row) for row in records])


def test_a_node_that_is_not_split_sends_all_to_the_left():
    model = initial_model(FORM.name, (4,), 1, 0)
    binned = model.binned(torch.tensor([[1.0, -1.0, 0.0, 5.0]]))
    assert binned.tolist() == [[7, 0, 4, 7]]
    assert not model.nodes(binned, slice(0, 3), 2).any()
    assert not model(torch.zeros(2, 4)).any()


def test_a_record_is_told_apart_by_its_own_values_alone():
    model, records = grown(), torch.rand(50, 4) * 2 - 1
    with torch.no_grad():
        together = model(records)
        alone = torch.cat([model(row[None]) for row in records])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf, 1e30, -5.0])
def test_whatever_weights_came_each_record_has_a_node_and_a_level(odd):
    model = grown()
    write_parameters(model, torch.full_like(read_parameters(model), odd))
    binned = model.binned(torch.tensor([[np.nan, np.inf, -np.inf, 0.0]]))
    assert binned.tolist() == [[4, 4, 4, 4]] or binned.tolist() == [[4, 7, 0, 4]]
    node = model.nodes(binned, slice(0, 3), 2)
    assert bool(((node >= 0) & (node < 4)).all())
    tree, level = model.grown()
    assert 0 <= tree < 3
    assert 0 <= level < 2


def test_levels_are_grown_tree_by_tree():
    model, places = grown(), []
    for levels in range(6):
        model.levels.data[:] = levels
        places.append(model.grown())
    assert places == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_models_of_two_seeds_differ_so_that_no_site_takes_them_for_one():
    first, again, other = (
        read_parameters(initial_model(FORM.name, (4,), 1, seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_what_trees_cannot_be_is_refused_in_a_sentence():
    with pytest.raises(SettingsError, match="this task asks for 10"):
        build_model(FORM.name, (4,), 10)
    with pytest.raises(SettingsError, match="sums a round are too many"):
        build_model("boosted_trees.1x8b256", (300,), 1)


def test_a_policy_names_trees_by_their_numbers_or_all_of_them():
    def trains(*models):
        policy = SitePolicy.__new__(SitePolicy)
        object.__setattr__(policy, "models", list(models))
        return policy.trains(FORM.name)

    assert trains("mlp", "boosted_trees")
    assert trains(FORM.name)
    assert not trains("boosted_trees.4x2b8")
    assert not trains("mlp")


def test_trees_begin_from_no_other_model():
    assert model_fault(FORM.name) is None
    assert "from nothing" in model_fault(f"from.{'0' * 64}.all.{FORM.name}")
