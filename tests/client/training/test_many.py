"""Many sites at once train as each would alone: the same batches and the same steps."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from catalog_models import SEQUENCES
from many_sites import CPU, FLAT, IMAGES, PLAN, TASK, model_of, records_of, split
from torch import nn
from toy_site import RECIPE

from lepton_client.training import many
from lepton_client.training.many import train_plain_many, train_private_many
from lepton_client.training.many_chain import is_chain
from lepton_client.training.many_room import (
    sites_at_once,
    why_not_plain,
    why_not_private,
    why_not_together,
)
from lepton_client.training.plain import train_plain
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout, read_parameters
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import UpdateInvalid
from lepton_common.models.catalog import build_model
from lepton_common.privacy.plan import SharedNoise
from lepton_common.tasks.catalog import TASKS

# Of the data sets that are not part of the distribution.
SHAPES = {
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "heart_disease": ((13,), 2),
}
TWICE = nn.Linear(4, 4)
LIMIT = 2e-5  # what many.py promises of an update, over its length


def toy(sizes, seed=0):
    data = records_of((4,), 3, sum(sizes), seed)
    return data, split(len(data), sizes), [7 + 10**12 * site for site in range(len(sizes))]


def one_by_one(model, task, data, rows, received, recipe, seeds):
    pairs = [
        train_plain(model, task, data.take(own), received, recipe, seed)
        for own, seed in zip(rows, seeds, strict=True)
    ]
    return np.stack([update for update, _ in pairs]), np.array([loss for _, loss in pairs])


def furthest(updates, expected):
    """Returns the largest distance of a site's update, over its length."""
    gaps = np.linalg.norm(updates - expected, axis=1)
    return (gaps / np.linalg.norm(expected, axis=1)).max()


ALL_MODELS = (*SHAPES, "digits", "breast_cancer")
# Its words are numbers up to 4,096, which no model of these is for.
WORDS = "sms_spam"
# Not stacked: labels of several values, or models that are no sequences of stacked layers.
ALONE = ("tcga_brca", "tcga_brca_hazard", "machine_anomaly", "shakespeare")


def cases():
    for task in TASKS:
        if task in ALL_MODELS:
            images = task not in ("breast_cancer", "heart_disease")
            yield from ((task, name) for name in (SEQUENCES if images else ("logistic", "mlp")))
            yield task, IMAGES if images else FLAT
        elif task not in (*ALONE, WORDS):
            yield task, "mlp"


@pytest.mark.parametrize("task", ALONE)
def test_labels_of_several_values_go_one_site_at_a_time(task):
    data = load_dataset(TASKS[task].dataset, MADE_UP, "public_ranges").train
    assert "one site at a time" in why_not_plain(RECIPE, data)
    assert "one site at a time" in why_not_private(CPU, RECIPE, replace(data, units=None), ())


@pytest.mark.parametrize(("task", "name"), list(cases()))
def test_every_task_and_model_trains_as_one_site_at_a_time(task, name):
    task = TASKS[task]
    if task.name in SHAPES:
        shape, classes = SHAPES[task.name]
        data = records_of(shape, classes, 40)
    else:
        root = None if task.name in ALL_MODELS else MADE_UP
        dataset = load_dataset(task.dataset, root, "public_ranges")
        data, shape, classes = dataset.train, dataset.input_shape, dataset.classes
    model, received = model_of(name, shape, task.outputs(classes, shape))
    recipe = replace(RECIPE, batch_size=4, momentum=0.5, learning_rate=0.02)
    arguments = model, task, data, split(len(data), [9, 4, 7]), received, recipe, [3, 2**40, 5]
    trained = train_plain_many(*arguments)
    updates, losses = one_by_one(*arguments)
    assert trained.updates.dtype == np.float32
    assert trained.updates.flags.c_contiguous
    assert furthest(trained.updates, updates) < LIMIT
    np.testing.assert_allclose(trained.losses, losses, rtol=1e-5)
    assert not trained.diverged.any()


@pytest.mark.parametrize("length", [{"local_epochs": 2}, {"local_epochs": None, "local_steps": 5}])
@pytest.mark.parametrize("batch_size", [1, 8, 100])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"proximal_mu": 2.0},
        {"momentum": 0.9, "weight_decay": 0.1, "proximal_mu": 2.0},
        {"optimizer": "adam", "learning_rate": 0.01},
        {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.1, "proximal_mu": 2.0},
    ],
)
def test_every_optimiser_takes_the_steps_of_one_site_at_a_time(changes, batch_size, length):
    data, rows, seeds = toy([11, 1, 8, 14])
    recipe = replace(RECIPE, batch_size=batch_size, **length, **changes)
    model, received = model_of("layers.linear5-tanh", (4,), 3)
    arguments = model, TASK, data, rows, received, recipe, seeds
    adam = recipe.optimizer == "adam"
    trained = train_plain_many(*arguments)
    assert furthest(trained.updates, one_by_one(*arguments)[0]) < (1e-3 if adam else LIMIT)


def test_what_is_not_a_chain_takes_the_same_steps():
    data = records_of((1, 8, 8), 10, 60)
    rows, seeds = split(60, [20, 9, 0, 31]), [1, 2, 3, 4]
    model, received = model_of("cnn_small", (1, 8, 8), 10)
    kept = [0, 1, 3]
    for changes in ({}, {"momentum": 0.9}, {"optimizer": "adam", "learning_rate": 1e-3}):
        recipe = replace(RECIPE, **changes)
        trained = train_plain_many(model, TASK, data, rows, received, recipe, seeds)
        expected, _ = one_by_one(
            model, TASK, data, [rows[i] for i in kept], received, recipe, [1, 2, 4]
        )
        assert furthest(trained.updates[kept], expected) < (
            1e-3 if "optimizer" in changes else 1e-5
        )
        assert not trained.updates[2].any()


def test_a_site_without_records_has_no_update_and_no_loss():
    data, rows, seeds = toy([8, 0, 12])
    model, received = model_of("mlp", (4,), 3)
    trained = train_plain_many(model, TASK, data, rows, received, RECIPE, seeds)
    assert trained.updates.any(axis=1).tolist() == [True, False, True]
    assert np.isnan(trained.losses).tolist() == [False, True, False]
    nobody = train_plain_many(model, TASK, data, rows[1:2], received, RECIPE, seeds[1:2])
    assert not nobody.updates.any()
    assert train_plain_many(model, TASK, data, [], received, RECIPE, []).updates.shape == (
        0,
        model.layout.size,
    )


@pytest.mark.parametrize(("name", "shape"), [("logistic", (4,)), ("layers.conv4k3", (1, 8, 8))])
def test_a_site_that_diverges_is_told_and_reaches_no_other(name, shape):
    sizes = [13, 8, 30, 16]
    data, rows, seeds = records_of(shape, 3, sum(sizes)), split(sum(sizes), sizes), [1, 2, 3, 4]
    data.features[rows[2]] = 1e38
    model, received = model_of(name, shape, 3)
    recipe = replace(RECIPE, batch_size=4, local_epochs=2)
    with pytest.raises(UpdateInvalid):
        train_plain(model, TASK, data.take(rows[2]), received, recipe, seeds[2])
    trained = train_plain_many(model, TASK, data, rows, received, recipe, seeds)
    assert trained.diverged.tolist() == [False, False, True, False]
    well = [0, 1, 3]
    expected, _ = one_by_one(
        model, TASK, data, [rows[i] for i in well], received, recipe, [seeds[i] for i in well]
    )
    assert furthest(trained.updates[well], expected) < LIMIT


@pytest.mark.parametrize("room", [1, 30_000, 1 << 40])
def test_whoever_else_trains_makes_no_difference(monkeypatch, room):
    data, rows, seeds = toy([13, 0, 1, 8, 30, 16, 16])
    model, received = model_of("mlp", (4,), 3)
    recipe = replace(RECIPE, momentum=0.9)
    whole = train_plain_many(model, TASK, data, rows, received, recipe, seeds)
    monkeypatch.setattr(many, "_GROUP_BYTES", room)
    grouped = train_plain_many(model, TASK, data, rows, received, recipe, seeds)
    kept = [len(own) > 0 for own in rows]
    assert furthest(grouped.updates[kept], whole.updates[kept]) < LIMIT
    for site, own in enumerate(rows):
        alone = train_plain_many(model, TASK, data, [own], received, recipe, [seeds[site]])
        np.testing.assert_allclose(alone.updates[0], whole.updates[site], rtol=1e-4, atol=1e-7)
    turned = train_plain_many(model, TASK, data, rows[::-1], received, recipe, seeds[::-1])
    assert furthest(turned.updates[::-1][kept], whole.updates[kept]) < LIMIT


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("name", ["mlp", "cnn_small"])
def test_nothing_stays_on_the_model_or_in_the_public_generators(name, private):
    data, rows = records_of((1, 8, 8), 3, 20), split(20, [12, 8])
    model, received = model_of(name, (1, 8, 8), 3)
    received = received + np.float32(0.01)
    received.flags.writeable = False
    before = read_parameters(model.module)
    state, numbers = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    if private:
        train_private_many(model, TASK, data, rows, received, RECIPE, [PLAN] * 2)
    else:
        train_plain_many(model, TASK, data, rows, received, RECIPE, [1, 2])
    assert torch.equal(before, read_parameters(model.module))
    assert all(parameter.grad is None for parameter in model.module.parameters())
    assert not any(layer._forward_hooks for layer in model.module.modules())
    assert torch.equal(state, torch.random.get_rng_state())
    assert np.array_equal(numbers, np.random.get_state()[1])  # noqa: NPY002


def test_what_goes_one_site_at_a_time_says_why():
    data = records_of((1, 28, 28), 10, 4)
    model, received = model_of("mlp", (1, 28, 28), 10)
    people = replace(data, units=np.zeros(4, np.int64))
    shared = replace(PLAN, shared=SharedNoise(5, 4, 1, 10))
    assert why_not_together(model, RECIPE, data, 20, None) is None
    assert why_not_together(model, RECIPE, data, 20, "record") is None
    half, views = replace(RECIPE, precision="bfloat16"), replace(RECIPE, augmentations=2)
    assert "bfloat16" in why_not_together(model, half, data, 20, None)
    assert "views" in why_not_together(model, views, data, 20, "record")
    assert why_not_together(model, views, data, 20, None) is None
    mixed = replace(RECIPE, mixup=0.2)
    assert "Mixed records go one site" in why_not_together(model, mixed, data, 20, None)
    assert "never private" in why_not_together(model, mixed, data, 20, "record")
    assert "People" in why_not_together(model, RECIPE, people, 20, "record")
    assert "distributed" in why_not_together(model, RECIPE, data, 20, "distributed")
    for recipe, given, plan in (
        (views, data, PLAN),
        (RECIPE, people, PLAN),
        (RECIPE, data, shared),
    ):
        with pytest.raises(ValueError, match="one site at a time"):
            train_private_many(model, TASK, given, [np.arange(4)], received, recipe, [plan])
    with pytest.raises(ValueError, match="one site at a time"):
        train_plain_many(model, TASK, data, [np.arange(4)], received, half, [1])
    large, _ = model_of("cnn_reference", (1, 28, 28), 10)
    small, _ = model_of("cnn_small", (1, 28, 28), 10)
    assert "CPU" in why_not_together(large, RECIPE, data, 20, None)
    assert why_not_together(small, RECIPE, data, 20, None) is None


@pytest.mark.parametrize(
    ("module", "word"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Dropout()), "Dropout"),
        (nn.Sequential(nn.Embedding(4, 3), nn.Flatten()), "Embedding"),
        (nn.ModuleList([nn.Linear(4, 3)]), "sequence"),
        (nn.Sequential(TWICE, nn.Tanh(), TWICE), "several"),
    ],
)
def test_layers_that_draw_or_mix_go_one_site_at_a_time(module, word):
    model = ResidentModel(module, Layout.of(module), CPU)
    assert word in why_not_together(model, RECIPE, records_of((4,), 3, 4), 4, None)


def test_only_chains_on_flat_records_are_taken_for_chains():
    assert is_chain(build_model("mlp", (2, 3), 4), (2, 3))
    linear = nn.Linear(4, 4)
    assert is_chain(nn.Sequential(nn.Tanh(), nn.Sequential(linear, nn.ReLU())), (4,))
    assert not is_chain(nn.Sequential(linear), (3, 4))
    assert not is_chain(nn.Sequential(TWICE, nn.Tanh(), TWICE), (4,))  # shared weights
    assert not is_chain(build_model("cnn_small", (1, 8, 8), 4), (1, 8, 8))
    assert not is_chain(nn.Sequential(nn.Tanh()), (4,))


def test_layers_may_be_nested_and_have_no_bias():
    module = nn.Sequential(
        nn.Sigmoid(), nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh()), nn.Linear(6, 3)
    )
    model = ResidentModel(module, Layout.of(module), CPU)
    data, rows, seeds = toy([13, 8, 30])
    arguments = model, TASK, data, rows, read_parameters(module).numpy(), RECIPE, seeds
    assert furthest(train_plain_many(*arguments).updates, one_by_one(*arguments)[0]) < LIMIT


def test_as_many_sites_as_fit():
    data = records_of((1, 28, 28), 10, 4)
    model, _ = model_of("mlp", (1, 28, 28), 10)
    size = 4 * model.layout.size
    plain = sites_at_once(model, RECIPE, data, 20, 1 << 30, private=False)
    assert 2 <= (1 << 30) / size / plain <= 8
    assert sites_at_once(model, RECIPE, data, 20, 1 << 30, private=True) < plain
    adam = replace(RECIPE, optimizer="adam")
    assert sites_at_once(model, adam, data, 20, 1 << 30, private=False) < plain
    assert sites_at_once(model, RECIPE, data, 20, 1, private=False) == 1
