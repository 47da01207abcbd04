"""Tests of objectives: each loss by its definition, record by record, and labels of its form."""

import math

import pytest
import torch
from torch import nn

from lepton_common.datasets.records import Dataset, Records, check
from lepton_common.tasks.catalog import TASKS, Task
from lepton_common.tasks.objectives import OBJECTIVES, Hazard

ALL = {**OBJECTIVES, "hazard": Hazard((1.0, 2.0, 4.0))}
KINDS = {
    "cross_entropy": "class", "binary": "class", "regression": "number", "next_token": "tokens",
    "reconstruction": "record", "hazard": "survival", "cox": "survival",
}  # fmt: skip
SHAPE, CLASSES = (5,), 2


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def _made(name, count, generator):
    objective = ALL[name]
    width = objective.outputs(CLASSES, SHAPE)
    shape = (count, *SHAPE, width) if name == "next_token" else (count, width)
    outputs = torch.randn(shape, generator=generator, dtype=torch.float64)
    return objective, outputs, objective.made_up_labels(count, CLASSES, SHAPE, generator)


def _by_definition(name, out, label, others):
    if name == "regression":
        return 0.5 * (out[0] - label) ** 2
    if name == "next_token":
        logs = [
            -math.log(math.exp(o[w]) / sum(map(math.exp, o)))
            for o, w in zip(out, label, strict=True)
        ]
        return sum(logs) / len(logs)
    if name == "reconstruction":
        return sum((o - w) ** 2 for o, w in zip(out, label[1:], strict=True)) / len(out)
    if name == "hazard":
        time, event = label
        (logit,) = out
        chance, likelihood = 1 / (1 + 19 * math.exp(-logit)), 1.0
        for until in (1.0, 2.0, 4.0):
            if time <= until or until == 4.0:
                likelihood *= chance if event else 1 - chance
                break
            likelihood *= 1 - chance
        return -math.log(likelihood)
    time, event = label
    at_risk = [o[0] for o, (other, _) in others if other >= time]
    return event * (math.log(sum(map(math.exp, at_risk))) - out[0])


@pytest.mark.parametrize("name", ["regression", "next_token", "reconstruction", "hazard", "cox"])
def test_losses_are_those_of_the_definition(name, generator):
    objective, outputs, labels = _made(name, 7, generator)
    pairs = list(zip(outputs.tolist(), labels.tolist(), strict=True))
    expected = [_by_definition(name, out, label, pairs) for out, label in pairs]
    assert objective.losses(outputs, labels).tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_records_loss_depends_on_others_where_that_is_said(name, generator):
    objective, outputs, labels = _made(name, 8, generator)
    if labels.shape[1:] == (2,):
        labels[:, 1] = 1.0
    before = objective.losses(outputs, labels)
    assert before.shape == (8,)
    outputs[3] = -3 * outputs[3] + 1
    changed = (objective.losses(outputs, labels) != before).nonzero().ravel().tolist()
    assert (changed == [3]) == objective.apart


@pytest.mark.parametrize("name", sorted(ALL))
def test_made_up_labels_are_labels_of_a_data_set(name, generator):
    _, _, labels = _made(name, 6, generator)
    records = Records(torch.zeros(6, *SHAPE), labels)
    check(records, Dataset("x", records, records, SHAPE, CLASSES, label_kind=KINDS[name]))


def test_positions_without_a_token_count_for_nothing(generator):
    objective, outputs, labels = _made("next_token", 2, generator)
    labels[0, 3:], labels[1] = -1, -1
    losses = objective.losses(outputs, labels)
    alone = objective.losses(outputs[:1, :3], labels[:1, :3])
    assert losses.tolist() == pytest.approx([float(alone), 0.0])


@pytest.mark.parametrize(
    ("task", "model", "labels", "expected"),
    [
        (
            Task("x", "x", "regression", "", scale=(0.0, 20.0, "days")),
            lambda n: torch.linspace(-1, 0.8, n)[:, None],
            lambda n: torch.linspace(-0.9, 0.9, n),
            {"rmse": 1.0, "mae": 1.0},
        ),
        (
            Task("x", "x", "next_token", ""),
            lambda n: torch.eye(4)[torch.arange(n * 2).view(n, 2) % 4] * 50,
            lambda n: torch.arange(n * 2).view(n, 2) % 4,
            {"accuracy": 1.0, "perplexity": 1.0},
        ),
        (
            Task("x", "x", "reconstruction", ""),
            lambda n: torch.zeros(n, 2),
            lambda n: torch.stack([torch.arange(n) % 2.0] + 2 * [torch.arange(n) % 2.0], 1),
            {"roc_auc": 1.0, "pr_auc": 1.0, "loss": 0.5},
        ),
        (
            Task("x", "x", "cox", ""),
            lambda n: -torch.arange(n)[:, None].float(),
            lambda n: torch.stack([torch.arange(n).float(), torch.ones(n)], 1),
            {"c_index": 1.0},
        ),
        (
            Task("x", "x", "hazard", "", until=(50.0, 200.0)),
            lambda n: torch.arange(n)[:, None].float() / n,
            lambda n: torch.stack([torch.arange(n).float(), torch.ones(n)], 1),
            {"c_index": 0.0},
        ),
    ],
    ids=["regression", "next_token", "reconstruction", "cox", "hazard"],
)
def test_figures_are_right_where_the_answer_is_known(task, model, labels, expected):
    n = 100 if task.learns in ("cox", "hazard") else 1200  # more than one batch
    found = task.evaluate(nn.Identity(), model(n), labels(n))
    assert task.headline.name in found
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=0.04)


def test_a_headline_that_is_not_accuracy_is_told_in_every_round(generator):
    task = Task("x", "x", "binary", "", counts="roc_auc")
    labels = torch.randint(0, 2, (500,), generator=generator)
    logits = labels[:, None] + 0.1 * torch.randn(500, 1, generator=generator)
    found = task.evaluate(nn.Identity(), logits, labels)
    assert set(found) == {"accuracy", "roc_auc", "loss"}
    assert found["roc_auc"] > 0.99 > 0.85 > found["accuracy"]
    every = task.evaluate(nn.Identity(), logits, labels, every=True)
    assert {"f1_macro", "calibration_error", "pr_auc"} < set(every)


def test_a_figure_that_records_do_not_define_is_left_out():
    task = Task("x", "x", "binary", "", counts="roc_auc")
    assert "roc_auc" not in task.evaluate(nn.Identity(), torch.ones(9, 1), torch.ones(9).long())


def test_mixed_labels_of_classes_are_soft_ones():
    outputs, shares = torch.randn(4, 3), torch.tensor([0.0, 0.25, 0.7, 1.0])
    labels, others = torch.tensor([0, 1, 2, 1]), torch.tensor([2, 1, 0, 0])
    soft = torch.zeros(4, 3)
    for row in range(4):
        soft[row, labels[row]] += shares[row]
        soft[row, others[row]] += 1 - shares[row]
    expected = -(soft * outputs.log_softmax(1)).sum(1)
    found = OBJECTIVES["cross_entropy"].mixed_losses(outputs, labels, others, shares)
    torch.testing.assert_close(found, expected)


def test_mixed_labels_of_two_classes_are_chances_and_those_of_numbers_are_numbers():
    outputs, shares = torch.randn(3, 1), torch.tensor([0.2, 0.5, 0.9])
    labels, others = torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0])
    chance = torch.sigmoid(outputs.squeeze(1))
    soft = torch.tensor([0.8, 1.0, 0.9])
    expected = -(soft * chance.log() + (1 - soft) * (1 - chance).log())
    found = OBJECTIVES["binary"].mixed_losses(outputs, labels, others, shares)
    torch.testing.assert_close(found, expected)
    numbers = torch.tensor([-0.5, 0.2, 1.0]), torch.tensor([0.5, 0.2, -1.0])
    found = OBJECTIVES["regression"].mixed_losses(outputs, *numbers, shares)
    mixed = torch.tensor([0.3, 0.2, 0.8])
    torch.testing.assert_close(found, (outputs.squeeze(1) - mixed).square() / 2)


def test_what_cannot_be_mixed_is_known_by_task():
    cannot = {name for name, task in TASKS.items() if not task.mixes}
    assert cannot == {"sms_spam", "shakespeare", "tcga_brca", "tcga_brca_hazard", "machine_anomaly"}
