"""What rounding lets one record or unit change of the others' clipped gradients: next to nothing.

Each case is an attack that worked: a server chooses the model, and the data is the worst there is.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_site import MODEL, RECIPE, VECTOR, synthetic

from lepton_client.training.bookkeeping import ClippedGradients
from lepton_client.training.conformance import OURS, Conformance, conform
from lepton_client.training.private import (
    Engine,
    _rows_by_unit,
    _sample,
    check_weights,
    clipped_sum,
    train_private,
)
from lepton_client.training.resident import ResidentModel, resident_model
from lepton_common.arrays import Layout
from lepton_common.datasets.records import Records
from lepton_common.errors import UpdateInvalid
from lepton_common.models.catalog import build_model, initial_model
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

CPU = torch.device("cpu")
TASK = Task("toy", "toy", "cross_entropy", "nothing")
PLAN = PrivacyPlan("row", 1e-5, 1.0, 1.0, 1.0, 1, 10, 16.0)


def summed(module, records, plan, batch_size=1024):
    model = ResidentModel(module, Layout.of(module), CPU)
    owners = np.arange(len(records)) if records.units is None else records.units
    units = [np.flatnonzero(owners == unit) for unit in np.unique(owners)]
    with Conformance(OURS, 0.0).open(model) as hooks:
        return clipped_sum(Engine(model, hooks), TASK, records, units, batch_size, plan)


def _kernel_attack():
    """Weights up to 100 with which four alike rows have other outputs than three of them."""
    torch.manual_seed(1)
    module = initial_model("mlp", (64,), 10, seed=1)
    first, _, last, shift = module.parameters()
    linear = next(layer for layer in module.modules() if isinstance(layer, torch.nn.Linear))
    row = torch.ones(1, 64) * (0.9 + 0.1 * torch.rand(1, 64))
    best, kept, biases = torch.full((64,), -1.0), torch.zeros(64, 64), torch.zeros(64)
    with torch.no_grad():
        for _ in range(100):
            weights = 90 + 10 * torch.rand(64, 64)
            weights[:, 32:] *= -1
            first.copy_(weights)
            linear.bias.zero_()
            linear.bias.copy_((-linear(row.repeat(8, 1))[0]).clamp(-100, 100))
            gap = linear(row.repeat(3, 1))[0] - linear(row.repeat(4, 1))[0]
            better = gap > best
            best[better], kept[better] = gap[better], weights[better]
            biases[better] = linear.bias[better]
        first.copy_(kept)
        linear.bias.copy_(biases)
        last.zero_()
        last[1], last[2] = 100, -100
        total = float(100 * torch.tanh(linear(row.repeat(4, 1))[0]).sum())
        shift.fill_(-100)
        shift[1], shift[2] = -total - 3, total + 3
        shift.clamp_(-100, 100)
    return module, row


@pytest.mark.parametrize("count", [4, 68, 1028])
def test_one_record_less_changes_no_kernel_that_the_others_go_through(count):
    module, row = _kernel_attack()
    records = Records(row.repeat(count, 1), torch.zeros(count, dtype=torch.int64))
    whole = summed(module, records, PLAN)
    less = summed(module, records.take(np.arange(count - 1)), PLAN)
    assert float((whole - less).norm()) <= 1 + 1e-5  # it was 7


def test_a_person_in_front_who_moves_where_batches_end_reaches_nobody():
    # Long gradients before short ones lose less, or more, of these than behind them in float32.
    module = initial_model("logistic", (30,), 2, seed=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        list(module.parameters())[-1][1] = -13.0
    chunks, person = 20, 512
    labels = torch.tensor([1, 0]).repeat_interleave(512).repeat(chunks)
    less = Records(torch.ones(len(labels), 30), labels, np.arange(len(labels)))
    more = Records(
        torch.ones(len(labels) + person, 30),
        torch.cat([torch.ones(person, dtype=torch.int64), labels]),
        np.concatenate([np.zeros(person, np.int64), 1 + np.arange(len(labels))]),
    )
    moved = summed(module, more, PLAN) - summed(module, less, PLAN)
    # Factors and gradients are float32; it was 1.3, and 6.7 with a million records.
    assert float(moved.norm()) <= 1 + 2e-7


@pytest.mark.parametrize("rows", [2, 64, 900])
@pytest.mark.parametrize("clipping_norm", [1e-6, 1e-3, 1.0])
def test_a_person_whose_records_cancel_drowns_nobody(rows, clipping_norm):
    torch.manual_seed(0)
    module = initial_model("mlp", (13,), 2, seed=0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        next(module.parameters()).fill_(100.0)
    others = torch.rand(100, 13)
    labels = torch.zeros(100, dtype=torch.int64)
    opposed = torch.arange(rows) % 2
    whole = Records(
        torch.cat([others, torch.ones(rows, 13)]),
        torch.cat([labels, opposed]),
        np.concatenate([np.arange(100), np.full(rows, 100)]),
    )
    plan = replace(PLAN, clipping_norm=clipping_norm)
    alone = Records(others, labels, np.arange(100))
    moved = summed(module, whole, plan) - summed(module, alone, plan)
    assert float(moved.norm()) <= clipping_norm * (1 + 1e-5)  # it was 44
    # Their own sum is zero, and so is what they add but for rounding.
    assert float(moved.norm()) <= 1e-4 * clipping_norm


def test_a_persons_many_records_are_measured_as_exactly_as_they_are_summed():
    # One long gradient, many shorter than half of its last bit, and one that takes it away again.
    module, rows, large = torch.nn.Conv2d(1, 1, 1), 1024, 2.0**30
    features = torch.full((rows, 1, 1, 1), large * 2.0**-24 * 0.999)
    features[0], features[-1] = large, -large + large / 32
    person = torch.zeros(rows, dtype=torch.int64)
    with ClippedGradients(module) as gradients:
        total = gradients.sum(
            lambda outputs, _: outputs.flatten(1).sum(1), features, person,
            clipping_norm=1.0, unit_of_row=person, units=1,
        )  # fmt: skip
    assert 0.99 < float(total.norm()) <= 1 + 1e-6  # it was 1.0019


def _cancelling_convolution():
    """Weights with which a white image's gradient cancels over positions, and it is drawn last."""
    module = initial_model("cnn_reference", (1, 8, 8), 10, seed=1)
    first, bias, second, shift, hidden, low, last, _ = module.parameters()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        first.fill_(100.0)
        bias.fill_(100.0)
        shift.fill_(1e-30)
        low.fill_(1e-30)
        positions = hidden.shape[1] // second.shape[0]
        sign = torch.ones(positions)
        sign[positions // 2 :] = -1
        hidden.copy_((100 * sign).repeat(second.shape[0]).expand(len(hidden), -1))
        last.copy_(((torch.rand(10, 1, generator=generator) - 0.5) * 200).expand(10, len(hidden)))
    return module, (1, 8, 8)


class _Last(torch.nn.Module):
    """The signs of a head make the gradient of what is before it cancel over positions."""

    def __init__(self, before, width):
        super().__init__()
        self.before, self.head = before, torch.nn.Linear(width, 10, bias=False)
        with torch.no_grad():
            for parameter in before.parameters():
                parameter.zero_()  # so that the head's own gradient is zero
            sign = torch.ones(width)
            sign[width // 2 :] = -1
            self.head.weight.copy_(100 * sign * torch.linspace(-1, 1, 10).unsqueeze(1))

    def forward(self, values):
        return self.head(self.before(values).flatten(1))


def _cancelling_sequence():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 1)
    return _Last(layer, 32), (32, 8)


class _Twice(torch.nn.Module):
    """A layer used twice, the second time to take away what the first gave."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = torch.nn.Linear(8, 4), torch.nn.Linear(4, 10, bias=False)
        with torch.no_grad():
            for parameter in self.layer.parameters():
                parameter.zero_()
            self.head.weight.copy_(100 * torch.randn(10, 4).clamp(-1, 1))

    def forward(self, values):
        return self.head(self.layer(values[:, 0]) - self.layer(values[:, 1]))


def _cancelling_uses():
    torch.manual_seed(0)
    return _Twice(), (2, 8)


@pytest.mark.parametrize("make", [_cancelling_convolution, _cancelling_sequence, _cancelling_uses])
@pytest.mark.parametrize("clipping_norm", [1e-6, 1.0])
def test_a_record_whose_terms_cancel_drowns_nobody(make, clipping_norm):
    module, shape = make()
    generator = torch.Generator().manual_seed(2)
    others = torch.rand(1, *shape, generator=generator).expand(200, *shape)
    white, labels = torch.ones(1, *shape), torch.full((201,), 3)
    labels[100] = 0
    plan = replace(PLAN, clipping_norm=clipping_norm)
    whole = Records(torch.cat([others[:100], white, others[100:]]), labels)
    less = whole.take(np.delete(np.arange(201), 100))
    moved = summed(module, whole, plan) - summed(module, less, plan)
    assert float(moved.norm()) <= clipping_norm * (1 + 1e-4)  # it was 6.5


def test_a_unit_with_more_rows_than_go_through_at_once_is_sampled():
    rows = [np.arange(1000), np.array([1000, 1001])]
    recipe = replace(RECIPE, batch_size=128, augmentations=4)
    model = resident_model("mlp", (4,), 3, CPU, channels_last=False)
    picked, small = _sample(rows, PLAN, recipe, model, SecretRandom())
    assert len(picked) == len(set(picked.tolist())) == 32
    assert set(picked.tolist()) <= set(range(1000))
    again, _ = _sample(rows, PLAN, recipe, model, SecretRandom())
    assert sorted(picked) != sorted(again)
    assert np.array_equal(small, rows[1])


def test_a_weight_that_is_no_number_is_refused_wherever_it_stands():
    model = resident_model("mlp", (4,), 3, CPU, channels_last=False)
    check_weights(model)
    for parameter in model.module.parameters():
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.view(-1)[0] = float("nan")
        with pytest.raises(UpdateInvalid):
            check_weights(model)
        with torch.no_grad():
            parameter.copy_(kept)


def test_a_server_that_chose_the_weights_chooses_no_engine():
    model = resident_model("mlp", (4,), 3, CPU, channels_last=False)
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.zero_()  # of which no gradient but a bias' can be told
    found = conform(model, TASK, (4,), 3, (64,))
    assert found.engine == OURS
    assert all(not parameter.any() for parameter in model.module.parameters())


def test_an_empty_site_whose_people_have_ids_samples_nobody():
    nobody = Records(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), np.zeros(0, np.int64))
    assert _rows_by_unit(nobody) == []


def test_a_step_that_throws_the_model_far_off_is_the_last():
    model = resident_model("mlp", (4,), 3, CPU, channels_last=False)
    recipe = replace(RECIPE, learning_rate=1e6, optimizer="sgd")
    plan = replace(PLAN, steps_per_round=2)
    with pytest.raises(UpdateInvalid, match="too far"):
        train_private(model, TASK, synthetic(), VECTOR, recipe, plan, Conformance(OURS, 0.0))
    once = replace(plan, steps_per_round=1)
    train_private(model, TASK, synthetic(), VECTOR, recipe, once, Conformance(OURS, 0.0))
    assert MODEL is not model.module


def test_a_gradient_of_the_smallest_numbers_is_clipped_like_any_other():
    # A signal of one denormal step, times a factor above one half, was rounded up to itself; what
    # the layer reads is as large as numbers get.
    module = build_model("layers." + "-".join(["linear1"] * 19 + ["linear64"] * 2), (4,), 2)
    *first, _, last = layers = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    record, logits = torch.ones(1, 4), torch.tensor([-23.0, 23.0])
    with torch.no_grad():
        for layer in layers:
            layer.weight.zero_()
            layer.bias.zero_()
        values = record
        for layer in first:
            layer.weight[:, 0] = min(100.0, 3e38 / float(values[0, 0]))
            values = layer(values)
        last.bias.copy_(logits)
        last.weight[0] = 2.0**-149 / logits.softmax(0)[0]
    records = Records(record, torch.ones(1, dtype=torch.int64))
    length = float(summed(module, records, PLAN).norm())
    assert length > 1e-5
    for shorter in (1.5, 1.99, 2.5):
        plan = replace(PLAN, clipping_norm=length / shorter)
        found = float(summed(module, records, plan).norm()) * shorter / length
        assert found == pytest.approx(1.0, abs=1e-6)  # they were 1.5, 1.99 and 0
