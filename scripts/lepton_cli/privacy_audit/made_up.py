"""Made-up models and records to hold clipping against, ordinary ones and hostile ones."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from lepton_cli.privacy_audit.canaries import resident
from lepton_client.training.conformance import Conformance
from lepton_client.training.private import Engine, clipped_sum
from lepton_client.training.resident import ResidentModel
from lepton_client.training.views import Views
from lepton_common.arrays import Vector, read_parameters
from lepton_common.datasets.records import Records, Rows
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

TASK = Task("audit", "made up", "cross_entropy", "nothing")
MODELS = ("mlp", "logistic", "cnn_small")
CLASSES, RECORDS = 3, 8
_LARGEST_WEIGHT = 100.0  # of `lepton_client.consent.check_model`


def make_models(device: torch.device) -> list[tuple[str, ResidentModel]]:
    """Returns models of several kinds with what to call them, one with weights as large as may be.

    A site accepts weights up to 100, with which rounding tells most.
    """
    models = [(name, make_model(name, device)) for name in MODELS]
    largest, generator = make_model("mlp", device), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in largest.module.parameters():
            drawn = torch.rand(parameter.shape, generator=generator)
            parameter.copy_(_LARGEST_WEIGHT * (2 * drawn - 1))
    return [*models, ("mlp with the largest weights", largest)]


@contextmanager
def opened(
    model: ResidentModel, plan: PrivacyPlan, engine: str
) -> Iterator[Callable[..., torch.Tensor]]:
    """Gives a function that sums units' clipped gradients as a site does, shape [d]."""
    with Conformance(engine, 0.0).open(model) as hooks:
        ready = Engine(model, hooks)

        def summed(records: Records, units: list[Rows], views: Views | None = None) -> torch.Tensor:
            return clipped_sum(ready, TASK, records, units, RECORDS // 2, plan, views)

        yield summed


def singles(count: int) -> list[Rows]:
    """Returns as many units of one record each."""
    return [np.array([row]) for row in range(count)]


def make_model(name: str, device: torch.device) -> ResidentModel:
    """Returns a model of the catalog, ready to train."""
    return resident(initial_model(name, shape_for(name), CLASSES, seed=3), device)


def weights_of(model: ResidentModel) -> Vector:
    """Returns the weights of a model, shape [d]."""
    weights: Vector = read_parameters(model.module).cpu().numpy()
    return weights


def shape_for(model: str) -> tuple[int, ...]:
    """Returns the shape of one record for a model."""
    return (1, 12, 12) if model.startswith("cnn") else (5,)


def make_records(model: str, count: int) -> Records:
    """Returns ordinary records, the same each time."""
    generator = torch.Generator().manual_seed(count)
    features = torch.randn(count, *shape_for(model), generator=generator)
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    return Records(features, labels)


def hostile_records(model: str) -> Iterator[tuple[str, Records]]:
    """Yields batches that have broken sums of gradients before, each with a word for it."""
    plain = make_records(model, RECORDS)
    for scale in (1.0, 1e-6, 1e4, 1e30):
        yield f"scaled by {scale:g}", replace(plain, features=plain.features * scale)
    several = np.array([0, 0, 0, 0, 0, 1, 1, 2])
    yield "several records a unit", replace(plain, units=several)
    same = plain.features[:1].expand_as(plain.features).contiguous()
    yield "duplicates", replace(plain, features=same, labels=plain.labels[:1].expand(RECORDS))
    yield "duplicates of one unit", replace(plain, features=same * 50.0, units=several)
    mixed = plain.features.clone()
    for row, value in enumerate((1e30, 1e-30, float("nan"), float("inf"), -1e4, 0.0)):
        mixed[row] *= value
    yield "mixed", replace(plain, features=mixed)
    yield "mixed, several a unit", replace(plain, features=mixed, units=several)
