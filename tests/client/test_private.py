"""DP-SGD does what its plan says, and falls into none of the traps known from Opacus.

The traps are those measured in Opacus 1.6 in use: noise that follows a seed, per-round
accounting, clipping and noise from different places, denominators that follow the private
count, leftovers of an aborted step, empty batches, records that are not finite, losses and
layers that mix records, buffers that carry them out.
"""

from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
import torch
from catalog_models import SEQUENCES, outputs_of, shape_of, task_for
from torch import nn
from toy_site import MODEL, PRIVACY, RECIPE, VECTOR, synthetic

from lepton_client.training.bookkeeping import ClippedGradients
from lepton_client.training.conformance import OPACUS, OURS, Conformance, conform
from lepton_client.training.opacus_gradients import OpacusGradients
from lepton_client.training.optimizers import Sgd
from lepton_client.training.private import Engine, clipped_sum, train_private
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_common.arrays import Layout, read_parameters
from lepton_common.datasets.records import Records
from lepton_common.errors import BuffersNotAllowed, UpdateInvalid
from lepton_common.models.catalog import MODELS, initial_model
from lepton_common.privacy.plan import PrivacyPlan, SharedNoise
from lepton_common.tasks.catalog import Task

CPU = torch.device("cpu")
TASK = Task("toy", "toy", "cross_entropy", "nothing")
PLAN = PrivacyPlan(
    unit="row",
    delta=1e-5,
    sample_rate=1.0,
    noise_multiplier=1.0,
    clipping_norm=0.7,
    steps_per_round=1,
    max_steps=10,
    denominator=16.0,
)
ENGINE = Conformance(OURS, 0.0)
QUIET = replace(PLAN, noise_multiplier=1e-12)


@pytest.fixture(autouse=True, params=[OURS, OPACUS])
def engine(request):
    """All of this holds for both engines."""
    global ENGINE
    ENGINE = Conformance(request.param, 0.0)


def toy_model():
    model = resident_model("mlp", (4,), 3, CPU, channels_last=False)
    model.load(VECTOR)
    return model


def units_of(records):
    if records.units is None:
        return [np.array([row]) for row in range(len(records))]
    return [np.flatnonzero(records.units == unit) for unit in np.unique(records.units)]


def summed(records, plan=PLAN, model=None, units=None, batch_size=8):
    model = model or toy_model()
    with ENGINE.open(model) as hooks:
        return clipped_sum(
            Engine(model, hooks),
            TASK,
            records,
            units_of(records) if units is None else units,
            batch_size,
            plan,
        )


def oracle(module, task, records, units, clipping_norm):
    """Clips each unit's summed gradient, one record at a time, by plain autograd."""
    total = torch.zeros(sum(p.numel() for p in module.parameters()), dtype=torch.float64)
    for rows in units:
        unit = torch.zeros_like(total)
        for row in rows:
            loss = task.losses(module(records.features[[row]]), records.labels[[row]])[0]
            parts = torch.autograd.grad(loss, list(module.parameters()))
            unit += torch.cat([part.reshape(-1) for part in parts]).double()
        total += unit * min(1.0, clipping_norm / float(unit.norm()))
    return total


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("loss", ["cross_entropy", "binary"])
def test_the_clipped_sum_is_that_of_one_record_at_a_time(name, loss):
    shape = (1, 16, 16) if name.startswith("cnn") else (5,)
    task = replace(TASK, learns=loss)
    module = initial_model(name, shape, task.outputs(3, ()), seed=3)
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (6,), generator=generator)
    records = Records(torch.randn(6, *shape, generator=generator), labels)
    model = ResidentModel(module, Layout.of(module), CPU)
    with ENGINE.open(model) as hooks:
        ours = clipped_sum(Engine(model, hooks), task, records, units_of(records), 4, PLAN)
    expected = oracle(module, task, records, units_of(records), PLAN.clipping_norm)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_model_of_the_catalog_conforms(name):
    shape, task = shape_of(name), task_for(name)
    module = initial_model(name, shape, outputs_of(name), seed=3)
    model = ResidentModel(module, Layout.of(module), CPU)
    found = conform(model, task, shape, 3, (64,))
    assert found.engine == OURS
    assert found.difference < 1e-5
    assert conform(model, task, shape, 3, (64,)) is found  # compared once


@pytest.mark.parametrize("how", ["wrong", "raises"])
def test_where_ours_differs_opacus_is_used(monkeypatch, how):
    honest = ClippedGradients.sum

    def broken(self, *arguments, **options):
        if how == "raises":
            raise ValueError("no rule for this layer")
        return honest(self, *arguments, **options) * 1.01

    monkeypatch.setattr(ClippedGradients, "sum", broken)
    module = initial_model("mlp", (4,), 3, seed=0)
    model = ResidentModel(module, Layout.of(module), CPU)
    found = conform(model, TASK, (4,), 3, (64,))
    assert found.engine == OPACUS
    assert found.difference == (None if how == "raises" else pytest.approx(0.01, rel=1e-2))
    assert isinstance(found.open(model), OpacusGradients)


def test_the_clipped_sum_is_that_of_opacus_own_optimizer():
    from opacus.grad_sample import GradSampleModule
    from opacus.optimizers import DPOptimizer

    records = synthetic(16)
    module = GradSampleModule(initial_model("mlp", (4,), 3, seed=0), loss_reduction="sum")
    optimizer = DPOptimizer(
        torch.optim.SGD(module.parameters(), lr=1.0),
        noise_multiplier=0.0,
        max_grad_norm=PLAN.clipping_norm,
        expected_batch_size=1,
        loss_reduction="sum",
    )
    TASK.losses(module(records.features), records.labels).sum().backward()
    optimizer.pre_step()
    theirs = torch.cat([p.grad.reshape(-1) for p in module.parameters()])
    ours = summed(records).float()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)  # theirs clips at C/(n + 1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-4])
def test_leaving_a_unit_out_moves_the_sum_by_at_most_the_clipping_norm(scale):
    records = replace(synthetic(12), features=synthetic(12).features * scale)
    units = units_of(records)
    whole = summed(records, units=units)
    for left_out in range(len(units)):
        without = summed(records, units=units[:left_out] + units[left_out + 1 :])
        assert float((whole - without).norm()) <= PLAN.clipping_norm * (1 + 1e-5)


def test_a_person_with_many_records_counts_once():
    records = replace(synthetic(12), units=np.repeat([7, 3, 9], [6, 5, 1]))
    units = units_of(records)
    expected = oracle(MODEL, TASK, records, units, PLAN.clipping_norm)
    torch.testing.assert_close(summed(records), expected, rtol=1e-5, atol=1e-6)
    for left_out in range(3):
        without = summed(records, units=units[:left_out] + units[left_out + 1 :])
        assert float((summed(records) - without).norm()) <= PLAN.clipping_norm * (1 + 1e-5)


def test_like_records_in_a_large_batch_count_no_more_than_their_bound():
    one, plan = synthetic(1), replace(PLAN, clipping_norm=1e-3)
    records = Records(one.features.repeat(5000, 1), one.labels.repeat(5000))
    whole = summed(records, plan, batch_size=10_000)
    less = summed(records.take(np.arange(4999)), plan, batch_size=10_000)
    assert float((whole - less).norm()) <= plan.clipping_norm * (1 + 1e-5)


def test_an_aborted_step_leaves_nothing_to_the_next():
    features, labels = torch.ones(8, 4), torch.zeros(8, dtype=torch.int64)

    def aborted(outputs, labels):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), OpacusGradients(MODEL) as engine:
        engine.sum(aborted, features, labels, clipping_norm=1.0)
    for rows in (5, 7):
        sums = []
        for kind in (OpacusGradients, ClippedGradients):
            with kind(MODEL) as engine:
                part = features[:rows], labels[:rows]
                sums.append(engine.sum(TASK.losses, *part, clipping_norm=1.0))
        torch.testing.assert_close(*sums, rtol=1e-5, atol=1e-5)


def test_a_conformance_batch_whose_sum_is_zero_shows_nothing():
    class Silent(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, features):
            return self.layer(features * 0.0) * 0.0

    module = Silent()
    model = ResidentModel(module, Layout.of(module), CPU)
    assert conform(model, TASK, (4,), 3, (64,)) == Conformance(OPACUS, None)


@pytest.mark.parametrize("batch_size", [1, 5, 12, 1000])
def test_how_many_records_fit_in_memory_changes_nothing(batch_size):
    records = replace(synthetic(12), units=np.repeat([7, 3, 9], [6, 5, 1]))
    torch.testing.assert_close(
        summed(records, batch_size=batch_size), summed(records), rtol=1e-6, atol=1e-7
    )


def test_an_empty_sample_is_a_step_of_pure_noise():
    assert float(summed(synthetic(), units=[]).norm()) == 0.0
    plan = replace(PLAN, sample_rate=1e-9, denominator=2.0)
    update = train_private(toy_model(), TASK, synthetic(), VECTOR, RECIPE, plan, ENGINE)
    expected = RECIPE.learning_rate * PLAN.clipping_norm / 2.0
    assert 0.8 * expected < update.std() < 1.2 * expected


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_record_whose_gradient_is_not_finite_counts_as_zero(value):
    records = synthetic(12)
    features = records.features.clone()
    features[4] = value
    module = initial_model("logistic", (4,), 3, seed=0)
    model = ResidentModel(module, Layout.of(module), CPU)
    units = units_of(records)
    poisoned = summed(replace(records, features=features), model=model, units=units)
    without = summed(records, model=model, units=units[:4] + units[5:])
    torch.testing.assert_close(poisoned, without)


def test_a_norm_over_a_million_elements_is_not_underestimated():
    module = initial_model("logistic", (1_600_000,), 1, seed=0)
    features = torch.full((1, 1_600_000), 0.37)
    task = replace(TASK, learns="binary")
    records = Records(features, torch.ones(1, dtype=torch.int64))
    model = ResidentModel(module, Layout.of(module), CPU)
    with ENGINE.open(model) as hooks:
        clipped = clipped_sum(Engine(model, hooks), task, records, units_of(records), 8, PLAN)
    assert float(clipped.norm()) <= PLAN.clipping_norm * (1 + 1e-6)


def test_noise_does_not_follow_any_seed():
    updates = []
    for _ in range(2):
        torch.manual_seed(1)
        np.random.seed(1)  # noqa: NPY002 - the trap itself
        updates.append(train_private(toy_model(), TASK, synthetic(), VECTOR, RECIPE, PLAN, ENGINE))
    assert not np.array_equal(updates[0], updates[1])
    assert abs(np.corrcoef(updates[0] - updates[1], updates[1])[0, 1]) < 0.9


@pytest.mark.parametrize("shared", [None, SharedNoise(10, 7, 3, len(VECTOR))])
def test_the_noise_in_an_update_has_the_plans_standard_deviation(shared):
    plan = replace(PLAN, noise_multiplier=5.0, shared=shared)
    quiet = train_private(toy_model(), TASK, synthetic(), VECTOR, RECIPE, QUIET, ENGINE)
    noise = np.concatenate(
        [
            train_private(toy_model(), TASK, synthetic(), VECTOR, RECIPE, plan, ENGINE) - quiet
            for _ in range(23)
        ]
    )
    expected = RECIPE.learning_rate * 5.0 * plan.clipping_norm / plan.denominator
    assert abs(noise.std() / expected - 1) < 0.05
    assert abs(noise.mean()) < 6 * expected / len(noise) ** 0.5  # as much as four were of ten


def test_exactly_the_charged_number_of_steps_is_taken(monkeypatch):
    taken = []
    step = Sgd.step
    monkeypatch.setattr(Sgd, "step", lambda self: (taken.append(1), step(self))[1])
    plan = replace(PLAN, steps_per_round=3, sample_rate=1e-9)
    train_private(toy_model(), TASK, synthetic(), VECTOR, RECIPE, plan, ENGINE)
    assert len(taken) == plan.event().steps == 3


def test_the_denominator_is_the_public_one_whatever_the_number_of_records():
    one = synthetic(12).take(np.arange(1))
    update = train_private(toy_model(), TASK, one, VECTOR, RECIPE, QUIET, ENGINE)
    expected = -RECIPE.learning_rate * summed(one) / PLAN.denominator
    np.testing.assert_allclose(update, expected.numpy(), rtol=1e-3, atol=1e-7)


def test_a_site_smaller_than_its_batch_works():
    for count in (1, 2):
        records = synthetic(12).take(np.arange(count))
        recipe = replace(RECIPE, batch_size=512)
        assert np.isfinite(
            train_private(toy_model(), TASK, records, VECTOR, recipe, PLAN, ENGINE)
        ).all()


def test_an_aborted_step_leaves_nothing_behind_for_the_next_one():
    chunks = []

    class Breaks(Task):
        def losses(self, logits, labels):
            chunks.append(labels)
            if len(chunks) % 2 == 0:
                raise RuntimeError
            return super().losses(logits, labels)

    records = synthetic(100)
    model, expected = toy_model(), summed(records)
    for _ in range(2):
        with pytest.raises(RuntimeError), ENGINE.open(model) as hooks:
            clipped_sum(Engine(model, hooks), Breaks(*vars(TASK).values()), records,
                        units_of(records), 64, PLAN)  # fmt: skip
        torch.testing.assert_close(summed(records, model=model), expected)
    assert len(chunks) == 4


def test_hooks_come_off_and_names_stay_those_of_the_model():
    model = toy_model()
    for _ in range(3):
        train_private(model, TASK, synthetic(), VECTOR, RECIPE, PLAN, ENGINE)
    assert model.layout == Layout.of(MODEL) == Layout.of(model.module)
    assert not any("_module" in name for name, _ in model.module.named_parameters())
    assert not any(module._forward_hooks for module in model.module.modules())


def test_evaluation_between_rounds_leaves_no_activations_behind():
    model = toy_model()
    with ENGINE.open(model), torch.no_grad():
        model.module(synthetic().features)
    torch.testing.assert_close(
        summed(synthetic(12), model=model), summed(synthetic(12)), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    "layer",
    [
        nn.BatchNorm1d(4),
        nn.BatchNorm1d(4, affine=False),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
    ],
)
def test_layers_with_running_statistics_are_refused(layer):
    for parameter in layer.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(BuffersNotAllowed):
        Layout.of(nn.Sequential(OrderedDict(norm=layer, head=nn.Linear(4, 3))))


def test_the_loss_of_a_record_does_not_depend_on_the_others():
    records = synthetic(12)
    logits = MODEL(records.features)
    alone = torch.cat(
        [TASK.losses(logits[[row]], records.labels[[row]]) for row in range(len(records))]
    )
    torch.testing.assert_close(TASK.losses(logits, records.labels), alone)


def test_fedprox_adds_its_term_after_the_noise():
    start = replace(RECIPE, proximal_mu=5.0, learning_rate=0.1)
    plan = replace(QUIET, steps_per_round=2)
    model = toy_model()
    update = train_private(model, TASK, synthetic(12), VECTOR, start, plan, ENGINE)
    # Two steps by hand: g1, then g2 at w1 plus mu (w1 - w0).
    first = -0.1 * summed(synthetic(12)).numpy() / plan.denominator
    model.load((VECTOR + first).astype(np.float32))
    second = summed(synthetic(12), model=model).numpy() / plan.denominator
    expected = first - 0.1 * (second + 5.0 * first)
    np.testing.assert_allclose(update, expected, rtol=2e-3, atol=1e-6)


def test_divergence_is_decided_by_the_noised_model_and_has_a_name():
    recipe, plan = replace(RECIPE, learning_rate=3e38), replace(PLAN, denominator=1e-6)
    with pytest.raises(UpdateInvalid):
        train_private(toy_model(), TASK, synthetic(), VECTOR, recipe, plan, ENGINE)


def test_the_received_model_is_where_training_starts():
    model = toy_model()
    model.load(VECTOR + 1)
    train_private(model, TASK, synthetic(), VECTOR, RECIPE, replace(PLAN, sample_rate=1e-9), ENGINE)
    drift = read_parameters(model.module).numpy() - VECTOR
    assert np.abs(drift).max() < 1.0
    assert PRIVACY.steps_per_round == 2
