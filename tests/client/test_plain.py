"""Plain training: as many batches as asked, in an order of the seed's own, nothing hidden."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_site import MODEL, RECIPE, VECTOR, synthetic

from lepton_client.training.optimizers import Sgd
from lepton_client.training.plain import train_plain
from lepton_client.training.resident import resident_model
from lepton_common.arrays import read_parameters
from lepton_common.errors import SettingsError
from lepton_common.models.catalog import initial_model
from lepton_common.tasks.catalog import Task

TASK = Task("toy", "toy", "cross_entropy", "nothing")


def train(recipe, seed=1, records=None):
    model = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=True)
    return train_plain(model, TASK, records or synthetic(), VECTOR, recipe, seed)


@pytest.mark.parametrize(("epochs", "steps", "expected"), [(2, None, 10), (None, 7, 7)])
def test_it_takes_as_many_steps_as_asked(monkeypatch, epochs, steps, expected):
    taken = []
    step = Sgd.step
    monkeypatch.setattr(Sgd, "step", lambda self: (taken.append(1), step(self))[1])
    train(replace(RECIPE, local_epochs=epochs, local_steps=steps))
    assert len(taken) == expected


def test_one_full_batch_is_gradient_descent_by_hand():
    records = synthetic()
    update, loss = train(replace(RECIPE, batch_size=1000), records=records)
    module = initial_model("mlp", (4,), 3, seed=0)
    mean = TASK.losses(module(records.features), records.labels).mean()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean, module.parameters())])
    np.testing.assert_allclose(update, -0.1 * gradient.numpy(), rtol=1e-4, atol=1e-7)
    assert loss == pytest.approx(mean.item())


def test_the_same_seed_gives_the_same_bits_and_another_does_not():
    recipe = replace(RECIPE, local_epochs=3, momentum=0.9)
    first, _ = train(recipe, seed=1)
    assert np.array_equal(first, train(recipe, seed=1)[0])
    assert not np.array_equal(first, train(recipe, seed=2)[0])


def test_fedprox_pulls_towards_the_received_model():
    free, _ = train(replace(RECIPE, local_epochs=20))
    held, _ = train(replace(RECIPE, local_epochs=20, proximal_mu=2.0))
    assert np.linalg.norm(held) < 0.7 * np.linalg.norm(free)


def test_adam_and_weight_decay_do_what_they_say():
    adam, _ = train(replace(RECIPE, optimizer="adam", batch_size=1000))
    assert np.abs(adam).max() == pytest.approx(RECIPE.learning_rate, rel=1e-2)
    plain, _ = train(replace(RECIPE, batch_size=1000))
    decayed, _ = train(replace(RECIPE, batch_size=1000, weight_decay=0.5))
    np.testing.assert_allclose(decayed - plain, -0.1 * 0.5 * VECTOR, rtol=1e-3, atol=1e-6)


def test_mixed_records_are_trained_on_as_a_hand_would():
    records, recipe = synthetic(), replace(RECIPE, batch_size=1000, mixup=0.5)
    update, loss = train(recipe, seed=3, records=records)
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(3))
    features, labels = records.features[order], records.labels[order]
    generator = np.random.default_rng([1, 3])
    shares = torch.from_numpy(generator.beta(0.5, 0.5, len(records)).astype(np.float32))
    partners = torch.from_numpy(generator.permutation(len(records)))
    module = initial_model("mlp", (4,), 3, seed=0)
    own = shares[:, None]
    logits = module(own * features + (1 - own) * features[partners]).log_softmax(1)
    soft = torch.zeros(len(records), 3).scatter_add(1, labels[:, None], own)
    soft = soft.scatter_add(1, labels[partners][:, None], 1 - own)
    mean = -(soft * logits).sum(1).mean()
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean, module.parameters())])
    np.testing.assert_allclose(update, -0.1 * gradient.numpy(), rtol=1e-4, atol=1e-6)
    assert loss == pytest.approx(mean.item(), rel=1e-5)
    assert np.array_equal(update, train(recipe, seed=3, records=records)[0])


def test_without_mixup_nothing_is_drawn_for_it_and_tokens_are_not_mixed(monkeypatch):
    monkeypatch.setattr("lepton_client.training.plain.mix", None)
    train(RECIPE)
    text, mixed = replace(TASK, form="text"), replace(RECIPE, mixup=0.2)
    model = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=True)
    with pytest.raises(SettingsError, match="Mixup has no meaning"):
        train_plain(model, text, synthetic(), VECTOR, mixed, 1)


def test_bfloat16_stays_close_to_float32():
    full, _ = train(RECIPE)
    half, _ = train(replace(RECIPE, precision="bfloat16"))
    assert not np.array_equal(full, half)
    np.testing.assert_allclose(half, full, atol=0.02)


def test_the_update_is_the_trained_minus_the_received_model():
    update, _ = train(RECIPE)
    assert update.dtype == np.float32
    assert update.shape == VECTOR.shape
    assert np.array_equal(read_parameters(MODEL).numpy(), VECTOR)
