"""Every family of models trains, privately too, and beats what a constant answer reaches."""

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from catalog_models import FAMILIES, SEQUENCES, AnyTask, made_up, outputs_of, shape_of, task_for
from torch.nn import functional
from toy_site import RECIPE

from lepton_client.training.conformance import OPACUS, OURS, Conformance
from lepton_client.training.layer_calls import Call
from lepton_client.training.many_room import why_not_together
from lepton_client.training.plain import train_plain
from lepton_client.training.private import Engine, clipped_sum, train_private
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout, read_parameters, trained
from lepton_common.datasets.records import Records
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

PLAN = PrivacyPlan("row", 1e-5, 1.0, 1.0, 0.7, 1, 10, 16.0)
ROWS = 6
RECURRENT = ("lstm", "gru", "char_lstm", "char_gru", "cnn_rnn")


def resident(module):
    return ResidentModel(module, Layout.of(module), torch.device("cpu"))


def moved(name, seed=3):
    """A model of which no weight is zero, as those of adapters are in the beginning."""
    module = initial_model(name, shape_of(name), outputs_of(name), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trained(module):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return module


def one_at_a_time(module, task, records, units, clipping_norm):
    """Clips each unit's summed gradient, one record at a time, by plain autograd."""
    total = torch.zeros(Layout.of(module).size, dtype=torch.float64)
    for rows in units:
        unit = torch.zeros_like(total)
        for row in rows:
            loss = task.losses(module(records.features[[row]]), records.labels[[row]])[0]
            parts = torch.autograd.grad(loss, trained(module))
            unit += torch.cat([part.reshape(-1) for part in parts]).double()
        total += unit * min(1.0, clipping_norm / float(unit.norm()))
    return total


@pytest.mark.parametrize("clipping_norm", [0.01, 10.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_clipped_sum_is_that_of_one_record_at_a_time(name, clipping_norm):
    module, task = moved(name), task_for(name)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    records = Records(made_up(name, ROWS), labels)
    model, plan = resident(module), replace(PLAN, clipping_norm=clipping_norm)
    for units in ([np.array([row]) for row in range(ROWS)], [np.array([3, 1]), np.array([0, 5])]):
        expected = one_at_a_time(module, task, records, units, clipping_norm)
        for engine in (OURS, OPACUS) if name not in RECURRENT else (OURS,):
            with Conformance(engine, 0.0).open(model) as hooks:
                ours = clipped_sum(Engine(model, hooks), task, records, units, 4, plan)
            torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*FAMILIES, *SEQUENCES}))
def test_a_step_leaves_nothing_of_its_graph_in_memory(name, monkeypatch):
    # Hooks on tensors hold calls where no collector looks: what a call holds must not hold it.
    kept, begun = [], Call.__post_init__
    monkeypatch.setattr(
        Call, "__post_init__", lambda call: kept.append(weakref.ref(call)) or begun(call)
    )
    model, records = resident(moved(name)), Records(made_up(name, 3), torch.tensor([0, 1, 2]))
    with Conformance(OURS, 0.0).open(model) as hooks:
        units = [np.array([row]) for row in range(3)]
        clipped_sum(Engine(model, hooks), task_for(name), records, units, 4, PLAN)
    gc.collect()
    assert kept
    assert not any(call() for call in kept)


@pytest.mark.parametrize("private", [False, True])
def test_frozen_weights_get_neither_steps_nor_noise(private):
    module, task = moved("transformer_lora"), task_for("transformer_lora")
    before = {name: values.clone() for name, values in module.named_parameters()}
    model, received = resident(module), read_parameters(module).numpy().copy()
    records = Records(made_up("transformer_lora", 8), torch.zeros(8).long())
    recipe = replace(RECIPE, learning_rate=0.1, weight_decay=0.1, proximal_mu=1.0)
    if private:
        plan = replace(PLAN, noise_multiplier=3.0)
        update = train_private(model, task, records, received, recipe, plan,
                               Conformance(OURS, 0.0))  # fmt: skip
    else:
        update, _ = train_plain(model, task, records, received, recipe, 3)
    assert len(update) == model.layout.size == 1123
    assert bool((update != 0).all() if private else (update != 0).any())
    for name, values in module.named_parameters():
        assert torch.equal(values, before[name]) == (not values.requires_grad)
    assert Layout.of(module) == model.layout


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_trained_together_is_said(name):
    model = resident(moved(name))
    records = Records(made_up(name, 8), torch.zeros(8).long())
    fault = why_not_together(model, RECIPE, records, 4, "record")
    assert (fault is None) == (name == "autoencoder")
    assert fault is None or "one site at a time" in fault or "one at a time" in fault


def waves(name, rows, generator):
    """Records of two or three kinds that only a model of that family's sort tells apart."""
    labels = torch.randint(0, 2, (rows,), generator=generator)
    noise = torch.randn(rows, *shape_of(name), generator=generator)
    kind = labels.view(-1, *[1] * (noise.dim() - 1))
    if name == "resnet":
        across = torch.arange(8) // 2 % 2 * 2.0 - 1.0
        return 0.5 * noise + torch.where(kind == 1, across, across[:, None]), labels
    if name == "audio_cnn":
        time = torch.arange(noise.shape[1]) + 100 * torch.rand(rows, 1, generator=generator)
        return 0.1 * noise + torch.sin(time * torch.where(kind == 1, 0.4, 1.1)), labels
    if name.startswith("transformer"):
        # The same words but for one, at any place; filled up with padding.
        words = torch.randint(2, 9, noise.shape, generator=generator)
        words[:, 5:] = 0
        place = torch.randint(0, 5, (rows, 1), generator=generator)
        return words.scatter(1, place, 10 + labels[:, None]).float(), labels
    # Series that rise or fall.
    slope = torch.linspace(-1.0, 1.0, noise.shape[1])[:, None]
    return 0.3 * noise + torch.where(kind == 1, slope, -slope), labels


@pytest.mark.parametrize(
    ("name", "private"),
    [
        pytest.param(name, private, marks=[pytest.mark.slow] * (private and name == "resnet"))
        for name in sorted({*FAMILIES} - {"word_bag", "movements"})
        if name[:4] not in ("char", "auto")
        for private in (False, True)
    ],
)
def test_a_family_learns_a_small_problem(name, private):
    generator = torch.Generator().manual_seed(5)
    features, labels = waves(name, 512, generator)
    module = initial_model(name, shape_of(name), 2, 0)
    model, task = resident(module), task_for(name)
    records, received = Records(features[:256], labels[:256]), read_parameters(module).numpy()
    rate = 0.03 if name.startswith("transformer") else 0.01
    recipe = replace(RECIPE, optimizer="adam", learning_rate=rate, batch_size=32, local_epochs=6)
    if private:
        plan = replace(PLAN, sample_rate=0.25, denominator=64.0, steps_per_round=20,
                       max_steps=20, clipping_norm=1.0, noise_multiplier=0.1)  # fmt: skip
        fitted, recipe = Conformance(OURS, 0.0), replace(recipe, batch_size=96)
        update = train_private(model, task, records, received, recipe, plan, fitted)
    else:
        update, _ = train_plain(model, task, records, received, recipe, 3)
    model.load(received + update)
    with torch.no_grad():
        right = (module(features[256:]).argmax(1) == labels[256:]).float().mean()
    majority = max(float((labels[256:] == kind).float().mean()) for kind in (0, 1))
    assert float(right) > majority + (0.15 if private else 0.3)


class _NextToken(AnyTask):
    def losses(self, logits, labels):
        each = functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
        return each.mean(1)


@pytest.mark.parametrize("name", ["char_lstm", "char_gru"])
def test_a_recurrent_network_learns_which_token_comes_next(name):
    # Two steps on or three steps back, as the first token says: nothing that one token tells.
    generator = torch.Generator().manual_seed(5)
    start = torch.randint(0, 11, (256, 1), generator=generator)
    step = torch.where(torch.randint(0, 2, (256, 1), generator=generator) == 1, 2, 8)
    tokens = (start + step * torch.arange(8)) % 11
    records = Records(tokens[:, :7].float(), tokens[:, 1:])
    module = initial_model(name, (7,), 11, 0)
    model, received = resident(module), read_parameters(module).numpy()
    recipe = replace(RECIPE, optimizer="adam", learning_rate=0.02, batch_size=32, local_epochs=10)
    update, _ = train_plain(model, _NextToken("toy", "toy", "cross_entropy", "next"), records,
                            received, recipe, 3)  # fmt: skip
    model.load(received + update)
    with torch.no_grad():
        right = module(records.features).argmax(2) == records.labels
    assert float(right[:, 1:].float().mean()) > 0.9  # any constant answer: about one in eleven
    assert float(right[:, 0].float().mean()) < 0.75  # of which two are as likely


class _Reconstruction(Task):
    def losses(self, outputs, labels):
        return (outputs - labels).square().mean(1)


def test_an_autoencoder_beats_the_mean_and_sees_what_is_unusual():
    generator = torch.Generator().manual_seed(5)
    usual = torch.tanh(torch.randn(512, 2, generator=generator) @ torch.tensor(
        [[1.0, -1.0, 0.5, 0.0, 1.0, 0.3], [0.0, 1.0, 0.5, -1.0, 0.2, 1.0]]))  # fmt: skip
    module = initial_model("autoencoder", (6,), 6, 0)
    model, received = resident(module), read_parameters(module).numpy()
    records = Records(usual[:256], usual[:256])
    recipe = replace(RECIPE, optimizer="adam", learning_rate=0.02, batch_size=32, local_epochs=25)
    task = _Reconstruction("toy", "toy", "cross_entropy", "itself")
    update, _ = train_plain(model, task, records, received, recipe, 3)
    model.load(received + update)
    unusual = usual[256:].flip(1)
    with torch.no_grad():
        error = task.losses(module(usual[256:]), usual[256:])
        errors = task.losses(module(unusual), unusual)
    assert float(error.mean()) < 0.2 * float(usual[256:].var(0).mean())
    assert float((errors > error.quantile(0.9)).float().mean()) > 0.7
