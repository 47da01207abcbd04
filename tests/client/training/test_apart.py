"""A model that mixes the records of a batch is refused, before any record is read."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lepton_client.training.conformance import check_forgets, conform
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Layout
from lepton_common.errors import BuffersNotAllowed, LossNotApart
from lepton_common.tasks.catalog import Task

TASK = Task("toy", "toy", "cross_entropy", "nothing")
CPU = torch.device("cpu")


class Between(nn.Module):
    """Two linear layers, and what someone wrote between them."""

    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Linear(4, 6), nn.Linear(6, 3), between

    def forward(self, features):
        return self.second(self.between(self.first(features)))


def conformed(between):
    module = Between(between)
    return conform(ResidentModel(module, Layout.of(module), CPU), TASK, (4,), 3, (64,))


@pytest.mark.parametrize(
    "between",
    [
        lambda values: values - values.mean(0),
        lambda values: functional.batch_norm(values, None, None, training=True),
        lambda values: torch.softmax(values, dim=0),
        lambda values: values + values.flip(0),
        # In a few small records these do not show.
        lambda values: values + 1e-5 * values.mean(0),
        lambda values: values + 1e-6 * values.nan_to_num().mean(0),
        lambda values: values * (20.0 / values.abs().max().clamp(min=20.0)),
        lambda values: values - values.mean(0) if len(values) > 8 else values,
        lambda values: torch.cat([values[:16], values[16:] + values[:-16]]),
    ],
)
def test_a_model_that_mixes_records_is_refused(between):
    with pytest.raises(BuffersNotAllowed, match="depends on the others"):
        conformed(between)


@pytest.mark.parametrize(
    "between", [torch.tanh, lambda values: values - values.mean(1, keepdim=True), nn.Dropout(0.5)]
)
def test_a_model_that_keeps_them_apart_is_not(between):
    conformed(between)
    if isinstance(between, nn.Dropout):
        assert between.training


def test_a_model_is_tried_as_it_trains_whatever_mode_it_was_left_in():
    """An evaluation leaves it in the other one, in which this one keeps records apart."""

    class Centred(Between):
        def forward(self, features):
            first = self.first(features)
            return self.second(first - first.mean(0) if self.training else first)

    module = Centred(None).eval()
    with pytest.raises(BuffersNotAllowed, match="depends on the others"):
        conform(ResidentModel(module, Layout.of(module), CPU), TASK, (4,), 3, (64,))


class GoesOn(Between):
    """Goes on from where the last batch ended, if that had as many records."""

    def forward(self, features):
        first, before = self.first(features), self.between
        self.between = first.detach()
        alike = before is not None and len(before) == len(first)
        return self.second(first + before if alike else first)


class Largest(Between):
    """Scales by the largest value that it has met."""

    def forward(self, features):
        first = self.first(features)
        self.between = max(self.between or 1.0, float(first.abs().max().nan_to_num()))
        return self.second(first / self.between)


class KeepsMean(Between):
    """Keeps a mean of what it trains on, as a weight that is not trained, for evaluation."""

    def __init__(self, _):
        super().__init__(nn.Parameter(torch.zeros(6), requires_grad=False))

    def forward(self, features):
        first = self.first(features)
        if self.training:
            self.between.lerp_(first.detach().mean(0), 0.1)
        return self.second(first if self.training else first - self.between)


@pytest.mark.parametrize("kind", [GoesOn, Largest, KeepsMean])
def test_a_model_that_remembers_records_is_not_evaluated(kind):
    module = kind(None)
    with pytest.raises(BuffersNotAllowed, match="shown before"):
        check_forgets(ResidentModel(module, Layout.of(module), CPU), (4,))


@pytest.mark.parametrize("between", [torch.tanh, nn.Dropout(0.5)])
def test_one_that_does_not_is_left_as_it_was(between):
    module = Between(between)
    kept = [parameter.clone() for parameter in module.parameters()]
    check_forgets(ResidentModel(module, Layout.of(module), CPU), (4,))
    assert module.training
    assert all(torch.equal(*pair) for pair in zip(kept, module.parameters(), strict=True))


def test_a_loss_that_compares_records_is_refused_by_the_site_too_whatever_was_tried_before():
    module = nn.Linear(4, 1)
    model = ResidentModel(module, Layout.of(module), CPU)
    conform(model, Task("toy", "toy", "binary", "nothing"), (4,), 2, (64,))
    with pytest.raises(LossNotApart, match="compares records"):
        conform(model, Task("toy", "toy", "cox", "nothing"), (4,), 0, (64,))
