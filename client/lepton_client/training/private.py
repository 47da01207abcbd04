"""DP-SGD (Abadi et al. 2016) under a frozen plan: per-unit clipping, secret sampling and noise.

Sums of clipped gradients come from `bookkeeping`, or from Opacus where a conformance batch shows
that the two differ. The function is total: an empty sample is pure noise, and a record whose
gradient is not finite counts as zero, so that neither shows from outside.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.training.bookkeeping import ClippedGradients, most_rows
from lepton_client.training.conformance import Conformance
from lepton_client.training.likeness import FINE, SMALLEST
from lepton_client.training.opacus_gradients import OpacusGradients
from lepton_client.training.optimizers import new_optimizer
from lepton_client.training.plain import pull_towards
from lepton_client.training.resident import ResidentModel
from lepton_client.training.views import Views
from lepton_common.arrays import Vector, trained
from lepton_common.datasets.records import Records, Rows
from lepton_common.errors import UpdateInvalid
from lepton_common.messages import Recipe
from lepton_common.privacy.integer_noise import skellam
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import LARGEST_WEIGHT, SHARE_VARIANCE, PrivacyPlan
from lepton_common.tasks.catalog import Task


class Engine(NamedTuple):
    """A model with the hooks on it that give sums of clipped gradients.

    Attributes:
        model: the model.
        gradients: the hooks.
        together: whether people share a batch; see `Conformance`.
        step: what the rows of a small batch are filled up to a multiple of; likewise.
    """

    model: ResidentModel
    gradients: ClippedGradients | OpacusGradients
    together: bool = True
    step: int = SMALLEST


def train_private(
    model: ResidentModel,
    task: Task,
    records: Records,
    received: Vector,
    recipe: Recipe,
    plan: PrivacyPlan,
    conformance: Conformance,
) -> Vector:
    """Takes ``plan.steps_per_round`` private steps and returns the update, float32, shape [d].

    Raises:
        UpdateInvalid: the steps diverged; decided by the noised model alone.
    """
    secret = SecretRandom()
    start = model.load(received)
    optimizer, views = new_optimizer(model.module, recipe), Views(task, recipe, secret)
    rows_of_unit = _rows_by_unit(records)
    with conformance.open(model) as gradients:
        engine = Engine(model, gradients, conformance.together, conformance.step)
        for _ in range(plan.steps_per_round):
            check_weights(model)
            units = _sample(rows_of_unit, plan, recipe, model, secret)
            gradient = clipped_sum(engine, task, records, units, recipe.batch_size, plan, views)
            # All of the plan's noise, also where a plan is one that sites share.
            deviation = plan.noise_multiplier * plan.clipping_norm
            noisy = secret.add_gaussian(gradient.cpu().double().numpy(), deviation)
            gradient = torch.from_numpy(noisy).to(gradient).div_(plan.denominator)
            _assign(model, gradient)
            if recipe.proximal_mu:
                pull_towards(start, model, recipe.proximal_mu)
            optimizer.step()
    return model.update_since(start)


def noisy_sum(
    model: ResidentModel,
    task: Task,
    records: Records,
    received: Vector,
    recipe: Recipe,
    plan: PrivacyPlan,
    conformance: Conformance,
) -> NDArray[np.int64]:
    """Returns a site's part in one private step over the union of sites, int64, shape [d].

    The sum of the sampled units' clipped gradients, in steps of ``plan.grid``, rounded up or down
    at random, plus the site's share of Skellam noise (Agarwal, Kairouz and Liu 2021). Such parts
    may only be added up under secure aggregation: alone, this one has too little noise.
    """
    secret = SecretRandom()
    model.load(received)
    units = _sample(_rows_by_unit(records), plan, recipe, model, secret)
    views = Views(task, recipe, secret)
    with conformance.open(model) as gradients:
        engine = Engine(model, gradients, conformance.together, conformance.step)
        total = clipped_sum(engine, task, records, units, recipe.batch_size, plan, views)
    return noised(total.cpu().numpy().astype(np.float64), plan, secret)


def noised(
    values: NDArray[np.float64], plan: PrivacyPlan, secret: SecretRandom
) -> NDArray[np.int64]:
    """Returns values on the grid of a plan with a share of its noise, int64, shape [d]."""
    scaled = values / plan.grid
    floor = np.floor(scaled)
    # Compared with the fraction, not added to the value, which would round the dither.
    up = secret.uniform(len(scaled)) < scaled - floor
    return floor.astype(np.int64) + up + skellam(secret, SHARE_VARIANCE, len(scaled))


def clip_update(update: Vector, clipping_norm: float) -> NDArray[np.float64]:
    """Returns a whole update scaled to an L2 norm of at most a bound, shape [d].

    Whatever came of training, it is finite: an update that is not counts as zero.
    """
    values = update.astype(np.float64)
    norm = float(np.linalg.norm(values))
    if not math.isfinite(norm):
        return np.zeros_like(values)
    return values * min(1.0, clipping_norm / max(norm, 1e-30))


def clipped_sum(
    engine: Engine,
    task: Task,
    records: Records,
    units: list[Rows],
    batch_size: int,
    plan: PrivacyPlan,
    views: Views | None = None,
) -> torch.Tensor:
    """Returns the sum over units of their clipped gradients, float64, shape [d].

    A unit's gradient is the sum over its records (of each the mean over its views), scaled to an
    L2 norm of at most ``plan.clipping_norm``. Records and their views go through the model up to
    ``batch_size`` at a time, whole units together; the split changes nothing but the memory
    needed. Each unit must fit, as `_sample` sees to.

    Matrix products of other heights take other kernels, which round in other ways, and by that a
    record could change what the others' gradients are. So what goes through the model is filled
    up to one of `heights`, at which `conform` has seen that all rows are computed alike; where it
    has seen otherwise, each unit goes through alone.
    """
    model, count_of = engine.model, views.count if views else 1
    most = _rows_at_once(batch_size, model) if engine.together else 1

    def losses(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return task.losses(outputs, labels) / count_of

    # Apple's GPUs have no float64: there batches are added up on the CPU, which adds noise too.
    home = torch.device("cpu") if model.device.type == "mps" else model.device
    total: torch.Tensor | None = None
    for rows, unit_of_row, count in _chunks(units, max(1, most // count_of)):
        index = torch.from_numpy(rows)
        features = records.features[index].to(model.device)
        if features.is_floating_point():
            features = features.to(model.dtype)
        if views is not None and count_of > 1:
            features = views.of(features)
            index, unit_of_row = index.repeat_interleave(count_of), unit_of_row.repeat(count_of)
        # On a GPU kernels may differ at any height, so there it is always the same one.
        height = _filled_up(len(index), engine.step) if engine.together else len(index)
        if model.device.type != "cpu":
            height = max(height, most)
        single = count == len(index)
        of_row = torch.from_numpy(unit_of_row).to(model.device)
        part = engine.gradients.sum(
            losses,
            _filled(features, height),
            _filled(records.labels[index].to(model.device), height),
            clipping_norm=plan.clipping_norm,
            unit_of_row=None if single else _filled(of_row, height),
            units=height if single else count,
            mask=torch.arange(height, device=model.device) < len(index),
        )
        total = part.to(home) if total is None else total.add_(part.to(home))
    if total is None:
        return torch.zeros(model.layout.size, dtype=torch.float64, device=home)
    return total


def check_weights(model: ResidentModel) -> None:
    """Refuses weights with which rounding errors would let records influence one another.

    Clipping bounds each record's gradient if it depends on that record alone. Floating-point
    kernels keep that up to rounding, which absurd weights would magnify.

    Raises:
        UpdateInvalid: a weight is not finite or beyond 100; decided by the noised model alone.
    """
    # Each bound by itself: Python's max would pass over a NaN, which fails every comparison.
    bounds = [float(bound) for parameter in model.module.parameters()
              for bound in parameter.detach().aminmax()]  # fmt: skip
    if not all(-LARGEST_WEIGHT <= bound <= LARGEST_WEIGHT for bound in bounds):
        raise UpdateInvalid("A private step moved a weight too far; lower train.learning_rate.")


def _sample(
    rows_of_unit: list[Rows],
    plan: PrivacyPlan,
    recipe: Recipe,
    model: ResidentModel,
    secret: SecretRandom,
) -> list[Rows]:
    """Returns the rows of a Poisson sample of units, of each no more than go through at once."""
    most = max(1, _rows_at_once(recipe.batch_size, model) // recipe.augmentations)
    units = []
    for unit in secret.poisson_sample(len(rows_of_unit), plan.sample_rate):
        rows = rows_of_unit[unit]
        units.append(rows[np.argsort(secret.words(len(rows)))[:most]] if len(rows) > most else rows)
    return units


def heights(recipe: Recipe, model: ResidentModel) -> tuple[int, ...]:
    """Returns the heights that a batch may have under a recipe, whatever the records are."""
    # A record's views go through together, however many.
    most = max(_rows_at_once(recipe.batch_size, model), _filled_up(recipe.augmentations))
    if model.device.type != "cpu":
        return (most,)
    return (*range(FINE, SMALLEST, FINE), *range(SMALLEST, most + 1, SMALLEST))


def _rows_at_once(batch_size: int, model: ResidentModel) -> int:
    return _filled_up(min(batch_size, most_rows(model.module)))


def _filled_up(rows: int, step: int = SMALLEST) -> int:
    step = step if rows <= SMALLEST else SMALLEST
    return -(-rows // step) * step


def _filled(values: torch.Tensor, height: int) -> torch.Tensor:
    """Returns values with rows of zeros behind them, laid out in memory as `likeness` tried it."""
    # Views of images come in another order, for which there are other kernels.
    batch = values.new_zeros(height, *values.shape[1:])
    batch[: len(values)] = values
    return batch


def _rows_by_unit(records: Records) -> list[Rows]:
    if records.units is None:
        return list(np.arange(len(records)).reshape(-1, 1))
    if len(records) == 0:
        return []
    order = np.argsort(records.units, kind="stable")
    _, first = np.unique(records.units[order], return_index=True)
    return np.split(order, first[1:])


def _chunks(units: list[Rows], batch_size: int) -> Iterator[tuple[Rows, Rows, int]]:
    """Yields (rows, position of each row's unit in the chunk, number of units in the chunk)."""
    sizes = np.array([len(rows) for rows in units])
    start = 0
    while start < len(units):
        fitting = int(np.searchsorted(np.cumsum(sizes[start:]), batch_size, side="right"))
        stop = start + max(1, fitting)
        count = stop - start
        of_row = np.repeat(np.arange(count), sizes[start:stop])
        yield np.concatenate(units[start:stop]), of_row, count
        start = stop


def _assign(model: ResidentModel, gradient: torch.Tensor) -> None:
    offset = 0
    for parameter in trained(model.module):
        stop = offset + parameter.numel()
        # To its dtype first: not every device has the other.
        piece = gradient[offset:stop].to(parameter.dtype).to(parameter.device)
        parameter.grad = piece.view(parameter.shape)
        offset = stop
