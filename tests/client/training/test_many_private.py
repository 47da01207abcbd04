"""Many private sites at once clip, sample and add noise as each would alone."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from many_sites import FLAT, IMAGES, PLAN, TASK, model_of, records_of, split
from scipy import stats
from toy_site import RECIPE

from lepton_client.training import many, private
from lepton_client.training.conformance import OURS, Conformance
from lepton_client.training.many import train_private_many
from lepton_client.training.many_chain import stacked
from lepton_client.training.many_layers import Batch
from lepton_client.training.private import train_private
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout, read_parameters
from lepton_common.datasets.records import Records
from lepton_common.privacy.noise import SecretRandom

LUCK = 1e-6  # secret noise has no seed: a test of it fails by chance once in a million runs


class Known(SecretRandom):
    """Draws the same uniforms for each four records, and noise of no length."""

    def uniform(self, count):
        return np.resize([0.1, 0.9, 0.4, 0.6], count)

    def gaussian(self, count):
        return np.zeros(count, np.float32)

    def add_gaussian(self, values, standard_deviation):
        return values


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
    for name in ("logistic", "mlp", FLAT):
        yield name, (5,), "binary"
        yield name, (5,), "cross_entropy"
    for name in ("mlp", "cnn", "cnn_small", IMAGES):
        yield name, (1, 12, 12), "cross_entropy"


@pytest.mark.parametrize(("name", "shape", "loss"), list(private_cases()))
@pytest.mark.parametrize("group", [1, 1 << 24])
def test_private_steps_are_those_of_one_site_at_a_time(monkeypatch, name, shape, loss, group):
    monkeypatch.setattr(many, "SecretRandom", Known)
    monkeypatch.setattr(many, "_GROUP_BYTES", group)
    monkeypatch.setattr(private, "SecretRandom", Known)
    task = replace(TASK, learns=loss)
    data, rows = records_of(shape, 2, 44), split(44, [8, 0, 20, 4, 12])
    model, received = model_of(name, shape, task.outputs(2, shape))
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
    task = replace(TASK, learns=loss)
    data, rows = records_of(shape, 2, 27), split(27, [9, 9, 9])
    model, _ = model_of(name, shape, task.outputs(2, shape))
    vectors = [model_of(name, shape, task.outputs(2, shape), seed)[1] for seed in (1, 2, 3)]
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
    begun = 2.0**-6
    totals = [torch.full_like(values, begun) for values in weights]
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
            added = norms[site] * (found[site] - begun)
            assert float((added - expected).norm()) < 3e-6 * norms[site]
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
        def gaussian(self, count):
            return np.zeros(count, np.float32)

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


@pytest.mark.parametrize(
    ("inputs", "classes", "value", "bias", "norm"),
    [
        (150_528, 3, 0.37, 0.0, 1.0),  # float32 would lose 1e-4 of a sum of equal squares
        (64, 1000, 2.2e18, 26.1, 1e-3),  # signals whose squares float32 does not know
        (64, 3, 1e25, 0.0, 1.0),  # records whose squares it does not
    ],
)
def test_no_record_is_longer_than_the_clipping_norm(
    monkeypatch, inputs, classes, value, bias, norm
):
    monkeypatch.setattr(many, "SecretRandom", Known)
    module = torch.nn.Sequential(torch.nn.Linear(inputs, classes))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].bias.fill_(-bias)[0] = bias
    model = ResidentModel(module, Layout.of(module), torch.device("cpu"))
    data = Records(torch.full((1, inputs), value), torch.zeros(1, dtype=torch.int64))
    plan = replace(PLAN, sample_rate=1.0, clipping_norm=norm, denominator=1.0)
    recipe, received = replace(RECIPE, learning_rate=1.0), read_parameters(module).numpy().copy()
    trained = train_private_many(model, TASK, data, [np.arange(1)], received, recipe, [plan])
    (update,) = trained.updates.astype(float)
    assert np.linalg.norm(update) == pytest.approx(norm, rel=1e-5)
