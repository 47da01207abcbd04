"""Many sites at once train as each would alone: the same batches, steps, clipping and noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from toy_site import RECIPE

from lepton_client.training import many, private
from lepton_client.training.conformance import OURS, Conformance
from lepton_client.training.many import train_plain_many, train_private_many
from lepton_client.training.many_chain import is_chain, stacked
from lepton_client.training.many_layers import Batch
from lepton_client.training.many_room import sites_at_once, why_not_together
from lepton_client.training.plain import train_plain
from lepton_client.training.private import train_private
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout, read_parameters
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Records
from lepton_common.errors import UpdateInvalid
from lepton_common.models.catalog import MODELS, build_model, initial_model
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan, SharedNoise
from lepton_common.tasks.catalog import TASKS, Task

CPU = torch.device("cpu")
TASK = Task("toy", "toy", "cross_entropy", "nothing")
PLAN = PrivacyPlan("row", 1e-5, 0.5, 1.0, 0.7, 1, 100, 8.0)
# Of the data sets that are not part of the distribution.
SHAPES = {
    "mnist": ((1, 28, 28), 10),
    "fashion_mnist": ((1, 28, 28), 10),
    "cifar10": ((3, 32, 32), 10),
    "heart_disease": ((13,), 2),
}
LAYERS = {
    1: "layers.linear9-sigmoid-linear7-relu",
    3: "layers.conv4k3s2p1-norm2-mean2-tanh-linear6",
}
TWICE = nn.Linear(4, 4)
LIMIT = 2e-5  # what many.py promises of an update, over its length
LUCK = 1e-6  # secret noise has no seed: a test of it fails by chance once in a million runs


def model_of(name, shape, outputs, seed=0):
    module = initial_model(name, shape, outputs, seed)
    return ResidentModel(module, Layout.of(module), CPU), read_parameters(module).numpy()


def records_of(shape, classes, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.rand(count, *shape, generator=generator)
    return Records(features, torch.randint(0, classes, (count,), generator=generator))


def split(count, sizes, seed=0):
    order = np.random.default_rng(seed).permutation(count)[: sum(sizes)]
    return np.split(order, np.cumsum(sizes)[:-1])


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


def cases():
    for task in TASKS:
        images = task not in ("breast_cancer", "heart_disease")
        for name in sorted(MODELS) if images else ("logistic", "mlp"):
            yield task, name
        yield task, LAYERS[3 if images else 1]


@pytest.mark.parametrize(("task", "name"), list(cases()))
def test_every_task_and_model_trains_as_one_site_at_a_time(task, name):
    task = TASKS[task]
    if task.name in SHAPES:
        shape, classes = SHAPES[task.name]
        data = records_of(shape, classes, 40)
    else:
        dataset = load_dataset(task.dataset, None, "public_ranges")
        data, shape, classes = dataset.train, dataset.input_shape, dataset.classes
    model, received = model_of(name, shape, task.outputs(classes))
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


class Known(SecretRandom):
    """Draws the same uniforms for each four records, and noise of no length."""

    def uniform(self, count):
        return np.resize([0.1, 0.9, 0.4, 0.6], count)

    def gaussian(self, count, standard_deviation):
        return np.zeros(count)


def privately_one_by_one(model, task, data, rows, received, recipe, plans):
    return np.stack(
        [
            train_private(
                model, task, data.take(own), received, recipe, plan, Conformance(OURS, 0.0)
            )
            for own, plan in zip(rows, plans, strict=True)
        ]
    )


def private_cases():
    for name in ("logistic", "mlp", LAYERS[1]):
        yield name, (5,), "binary"
        yield name, (5,), "cross_entropy"
    for name in ("mlp", "cnn", "cnn_small", LAYERS[3]):
        yield name, (1, 12, 12), "cross_entropy"


@pytest.mark.parametrize(("name", "shape", "loss"), list(private_cases()))
@pytest.mark.parametrize("group", [1, 1 << 24])
def test_private_steps_are_those_of_one_site_at_a_time(monkeypatch, name, shape, loss, group):
    monkeypatch.setattr(many, "SecretRandom", Known)
    monkeypatch.setattr(many, "_GROUP_BYTES", group)
    monkeypatch.setattr(private, "SecretRandom", Known)
    task = replace(TASK, loss=loss)
    data, rows = records_of(shape, 2, 44), split(44, [8, 0, 20, 4, 12])
    model, received = model_of(name, shape, task.outputs(2))
    plans = [
        replace(PLAN, clipping_norm=0.02),  # clips all
        PLAN,
        replace(PLAN, sample_rate=0.05, steps_per_round=2),  # samples none
        replace(PLAN, sample_rate=0.5, steps_per_round=3, clipping_norm=100.0),  # clips none
        replace(PLAN, sample_rate=0.7, denominator=3.0, noise_multiplier=5.0),
    ]
    recipe = replace(RECIPE, momentum=0.9, weight_decay=0.01, proximal_mu=0.5, learning_rate=0.5)
    arguments = model, task, data, rows, received, recipe, plans
    trained, expected = train_private_many(*arguments), privately_one_by_one(*arguments)
    assert trained.losses is None
    for site, plan in enumerate(plans):
        gap = np.linalg.norm(trained.updates[site] - expected[site])
        bound = recipe.learning_rate * plan.steps_per_round * plan.clipping_norm / plan.denominator
        # Weights are float32 after each step.
        assert gap < 1e-5 * bound + 1e-7 * np.linalg.norm(received)
    assert np.abs(expected[[0, 3, 4]]).max(axis=1).min() > 1e-5


@pytest.mark.parametrize(("name", "shape", "loss"), list(private_cases()))
def test_a_clipped_sum_at_weights_of_its_own_is_that_of_private_training(name, shape, loss):
    task = replace(TASK, loss=loss)
    data, rows = records_of(shape, 2, 27), split(27, [9, 9, 9])
    model, _ = model_of(name, shape, task.outputs(2))
    vectors = [model_of(name, shape, task.outputs(2), seed)[1] for seed in (1, 2, 3)]
    norms, totals = [0.05, 0.7, 50.0], []
    pieces = np.split(np.stack(vectors), np.cumsum(model.layout.sizes)[:-1], axis=1)
    weights = [
        torch.from_numpy(piece.copy()).view(3, *layer)
        for piece, layer in zip(pieces, model.layout.shapes, strict=True)
    ]
    index = torch.from_numpy(np.stack(rows))
    counted = torch.ones(3, 9, dtype=torch.bool)
    counted[1, 5:] = False
    batch = Batch(data.features[index], data.labels[index], counted)
    totals = [torch.ones_like(values, dtype=torch.float64) for values in weights]
    exact = torch.tensor(norms, dtype=torch.float64)
    stacked(model.module, task, shape).add_clipped(totals, weights, batch, exact, 1.0 / exact)
    found = torch.cat([total.flatten(1) for total in totals], dim=1)
    with Conformance(OURS, 0.0).open(model) as hooks:
        for site, own in enumerate(rows):
            model.load(vectors[site])
            units = [np.array([row]) for row in (own[:5] if site == 1 else own)]
            plan = replace(PLAN, clipping_norm=norms[site])
            expected = private.clipped_sum(
                private.Engine(model, hooks), task, data, units, 64, plan
            )
            assert float((norms[site] * (found[site] - 1.0) - expected).norm()) < 3e-6 * norms[site]
            assert float(expected.norm()) > (0.5 if site < 2 else 1e-3) * norms[site]


def test_records_that_are_not_finite_add_nothing(monkeypatch):
    monkeypatch.setattr(many, "SecretRandom", Known)
    shape = (1, 8, 8)
    data, rows = records_of(shape, 3, 24), split(24, [12, 12])
    for name in ("layers.linear5-relu", "mlp", "cnn_small", "layers.conv4k3-relu"):
        model, received = model_of(name, shape, 3)
        recipe, plans = RECIPE, [replace(PLAN, sample_rate=1.0)] * 2
        kept = [rows[0], rows[1][2:]]
        expected = train_private_many(model, TASK, data, kept, received, recipe, plans)
        hostile = Records(data.features.clone(), data.labels)
        hostile.features[rows[1][0]] = float("nan")
        hostile.features[rows[1][1]] = float("inf")
        trained = train_private_many(model, TASK, hostile, rows, received, recipe, plans)
        np.testing.assert_allclose(trained.updates, expected.updates, rtol=1e-5, atol=1e-7)
        assert not trained.diverged.any()


def test_noise_is_that_of_each_plan_and_no_site_shares_it():
    data, rows = records_of((30,), 3, 0), [np.arange(0)] * 40
    model, received = model_of("mlp", (30,), 3)
    plans = [
        replace(PLAN, noise_multiplier=1.0 + site, denominator=2.0 + site % 3, steps_per_round=2)
        for site in range(40)
    ]
    trained = train_private_many(
        model, TASK, data, rows, received, replace(RECIPE, learning_rate=1e-3), plans
    )
    deviations = [
        1e-3 * plan.noise_multiplier * plan.clipping_norm / plan.denominator * 2**0.5
        for plan in plans
    ]
    drawn = trained.updates.astype(np.float64) / np.array(deviations)[:, None]
    low, high = stats.chi2.interval(1 - LUCK, drawn.size)
    assert low < (drawn**2).sum() < high
    assert stats.kstest(drawn.ravel(), stats.norm.cdf).pvalue > LUCK
    for own in drawn:
        low, high = stats.chi2.interval(1 - LUCK / 40, own.size)
        assert low < (own**2).sum() < high
    between = np.corrcoef(drawn)[np.triu_indices(40, 1)]
    assert np.abs(between).max() < 6.5 / drawn.shape[1] ** 0.5
    again = train_private_many(model, TASK, data, rows, received, RECIPE, plans)
    assert not np.array_equal(again.updates, trained.updates)


def test_samples_are_secret_and_as_large_as_the_rate_says(monkeypatch):
    taken = []

    class Counting(SecretRandom):
        def gaussian(self, count, standard_deviation):
            return np.zeros(count)

    honest = many.sampled
    monkeypatch.setattr(many, "SecretRandom", Counting)
    monkeypatch.setattr(many, "sampled", lambda *given: taken.append(honest(*given)) or taken[-1])
    data, rows = records_of((4,), 3, 3000), split(3000, [1000, 2000])
    model, received = model_of("logistic", (4,), 3)
    plans = [replace(PLAN, sample_rate=rate, steps_per_round=20) for rate in (0.2, 0.6)]
    train_private_many(model, TASK, data, rows, received, RECIPE, plans)
    sizes = np.sum([step.counted.sum(axis=1) for step in taken], axis=0)
    # The second site takes the first place: it is the larger one.
    assert stats.binomtest(int(sizes[0]), 40_000, 0.6).pvalue > LUCK
    assert stats.binomtest(int(sizes[1]), 20_000, 0.2).pvalue > LUCK
    first, second = (set(step.rows[0][step.counted[0]]) for step in taken[:2])
    assert first < set(rows[1])
    assert first != second


def test_a_private_site_that_moved_too_far_is_told():
    data, rows = records_of((4,), 3, 24), split(24, [12, 12])
    model, received = model_of("mlp", (4,), 3)
    plans = [replace(PLAN, steps_per_round=3), replace(PLAN, steps_per_round=3, denominator=1e-4)]
    trained = train_private_many(model, TASK, data, rows, received, RECIPE, plans)
    assert trained.diverged.tolist() == [False, True]
    received[5] = np.nan
    trained = train_private_many(model, TASK, data, rows, received, RECIPE, [PLAN] * 2)
    assert trained.diverged.all()


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
