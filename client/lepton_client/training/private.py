"""DP-SGD (Abadi et al. 2016) under a frozen plan: per-unit clipping, secret sampling and noise.

Opacus computes the gradient of each record and nothing else: sampling, clipping, noise and the
denominator are read from the plan here, because Opacus' own noise follows ``torch.manual_seed``,
its samplers and denominators depend on the private number of records, and its accountant
forgets across rounds. The function is total: an empty sample is pure noise, and a record whose
gradient is not finite counts as zero, so that neither shows from outside.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from lepton_client.training.plain import pull_towards
from lepton_client.training.resident import ResidentModel, new_optimizer
from lepton_common.arrays import Vector
from lepton_common.datasets.records import Records, Rows
from lepton_common.messages import Recipe
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task

_ROWS_AT_ONCE = 32

# Opacus registers its hooks on modules whose input needs no gradient, as a first layer's.
warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)


class Hooked(NamedTuple):
    """A model whose backward pass leaves a gradient for each record.

    Attributes:
        forward: the model's forward pass, through Opacus' hooks.
        model: the model itself.
    """

    forward: Callable[[torch.Tensor], torch.Tensor]
    model: ResidentModel


def train_private(
    model: ResidentModel,
    task: Task,
    records: Records,
    received: Vector,
    recipe: Recipe,
    plan: PrivacyPlan,
) -> Vector:
    """Takes ``plan.steps_per_round`` private steps and returns the update, float32, shape [d].

    Raises:
        UpdateInvalid: the steps diverged; decided by the noised model alone.
    """
    secret = SecretRandom()
    start = model.load(received)
    optimizer = new_optimizer(model.module, recipe)
    rows_of_unit = _rows_by_unit(records)
    with per_record_gradients(model) as hooked:
        for _ in range(plan.steps_per_round):
            sample = secret.poisson_sample(len(rows_of_unit), plan.sample_rate)
            units = [rows_of_unit[unit] for unit in sample]
            gradient = clipped_sum(hooked, task, records, units, recipe.batch_size, plan)
            noise = secret.gaussian(len(gradient), plan.noise_multiplier * plan.clipping_norm)
            gradient += torch.from_numpy(noise).to(gradient)
            gradient /= plan.denominator
            _assign(model, gradient)
            if recipe.proximal_mu:
                pull_towards(start, model, recipe.proximal_mu)
            optimizer.step()
    return model.update_since(start)


@contextmanager
def per_record_gradients(model: ResidentModel) -> Iterator[Hooked]:
    """Puts Opacus' hooks around a model, and takes them off again whatever happens.

    Fresh hooks for each request: what an aborted step left in them cannot reach the next.
    """
    # Imported here: it takes seconds, and training without privacy needs none of it.
    from opacus.grad_sample import GradSampleModule

    hooked = GradSampleModule(model.module, loss_reduction="sum", strict=True)
    try:
        yield Hooked(hooked, model)
    finally:
        hooked.to_standard_module()


def clipped_sum(
    hooked: Hooked,
    task: Task,
    records: Records,
    units: list[Rows],
    batch_size: int,
    plan: PrivacyPlan,
) -> torch.Tensor:
    """Returns the sum over units of their clipped gradients, float64 where there is, shape [d].

    A unit's gradient is the sum over its records, scaled to an L2 norm of at most
    ``plan.clipping_norm``. Records go through the model about ``batch_size`` at a time, whole
    units together; the split changes nothing but the memory needed.
    """
    model = hooked.model
    # Apple's GPUs have no float64.
    precision = torch.float32 if model.device.type == "mps" else torch.float64
    total = torch.zeros(model.layout.size, dtype=precision, device=model.device)
    for rows, unit_of_row, count in _chunks(units, batch_size):
        per_record = _record_gradients(hooked, task, records, rows)
        if count == len(rows):
            per_unit = per_record
        else:
            per_unit = per_record.new_zeros(count, per_record.shape[1])
            per_unit.index_add_(0, torch.from_numpy(unit_of_row).to(model.device), per_record)
        # In double precision: a float32 norm over a million elements comes out too small.
        norms = torch.linalg.vector_norm(per_unit, dim=1, dtype=precision)
        finite = torch.isfinite(norms)
        per_unit[~finite] = 0.0
        factors = torch.where(finite, plan.clipping_norm / norms.clamp(min=1e-30), 0.0)
        factors = factors.clamp(max=1.0)
        for start in range(0, count, _ROWS_AT_ONCE):
            stop = start + _ROWS_AT_ONCE
            total += factors[start:stop] @ per_unit[start:stop].to(precision)
    return total


def _record_gradients(hooked: Hooked, task: Task, records: Records, rows: Rows) -> torch.Tensor:
    """Returns each record's gradient of its own loss, float32, shape [len(rows), d]."""
    index = torch.from_numpy(rows)
    features = records.features[index].to(hooked.model.device)
    labels = records.labels[index].to(hooked.model.device)
    torch.autograd.backward(task.losses(hooked.forward(features), labels).sum())
    pieces: list[torch.Tensor] = []
    for parameter in hooked.model.module.parameters():
        # Opacus leaves per-record gradients as an attribute, and adds to them if they stay.
        per_record: torch.Tensor = vars(parameter)["grad_sample"]
        pieces.append(per_record.flatten(1))
        vars(parameter)["grad_sample"] = parameter.grad = None
    return torch.cat(pieces, dim=1)


def _rows_by_unit(records: Records) -> list[Rows]:
    if records.units is None:
        return list(np.arange(len(records)).reshape(-1, 1))
    order = np.argsort(records.units, kind="stable")
    _, first = np.unique(records.units[order], return_index=True)
    return np.split(order, first[1:])


def _chunks(units: list[Rows], batch_size: int) -> Iterator[tuple[Rows, Rows, int]]:
    """Yields (rows, position of each row's unit in the chunk, number of units in the chunk)."""
    chunk: list[Rows] = []
    filled = 0
    for index, rows in enumerate(units):
        chunk.append(rows)
        filled += len(rows)
        if filled >= batch_size or index == len(units) - 1:
            sizes = [len(part) for part in chunk]
            yield np.concatenate(chunk), np.repeat(np.arange(len(chunk)), sizes), len(chunk)
            chunk, filled = [], 0


def _assign(model: ResidentModel, gradient: torch.Tensor) -> None:
    offset = 0
    for parameter in model.module.parameters():
        stop = offset + parameter.numel()
        parameter.grad = gradient[offset:stop].view(parameter.shape).to(parameter.dtype)
        offset = stop
