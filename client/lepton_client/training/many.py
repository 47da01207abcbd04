"""Many simulated sites trained at once on one device: where models are small, overhead is all.

Each site has the batches, the optimiser and the steps that `plain` or `private` would give it. What
is promised is a tolerance and not the same bits: products of stacked matrices round in other ways
than products of single ones. Without privacy an update differs from that of `train_plain` by less
than 2e-5 of its length, with Adam by less than 1e-3, because it divides small gradients by
themselves. With privacy the sampled records' clipped gradients agree to 1e-5 of the clipping norm,
and the noise is of the same law, drawn and added in float32.

Sites that share a process are simulated. What docs/privacy.md says about rounding, that no record
decides the last bits of another's gradient, is tried for `private` and not for this file: here a
batch is as wide as the widest site's. A site that is deployed trains by `train_private`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.training.layer_norms import precision_on
from lepton_client.training.many_batches import Step, plain_steps, sampled, steps_of
from lepton_client.training.many_chain import stacked
from lepton_client.training.many_layers import Batch, Dense
from lepton_client.training.many_optimizers import Steps
from lepton_client.training.many_room import Room, why_not_plain, why_not_private
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Vector
from lepton_common.datasets.records import Records, Rows
from lepton_common.messages import Recipe
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import LARGEST_WEIGHT, PrivacyPlan
from lepton_common.tasks.catalog import Task

_GROUP_BYTES = 1 << 24  # of what a CPU works on at a time: a share of its last cache


class ManyTrained(NamedTuple):
    """What came of training many sites; row i belongs to site i.

    Attributes:
        updates: float32, shape [sites, d].
        diverged: bool, shape [sites]; where True, `train_plain` or `train_private` would have
            raised `UpdateInvalid`, and the update must not be used.
        losses: mean over all steps, float64, shape [sites]; not a number for a site without
            records. None with privacy: no loss of private records leaves.
    """

    updates: NDArray[np.float32]
    diverged: NDArray[np.bool_]
    losses: NDArray[np.float64] | None


def train_plain_many(
    model: ResidentModel,
    task: Task,
    data: Records,
    rows: Sequence[Rows],
    received: Vector,
    recipe: Recipe,
    seeds: Sequence[int],
) -> ManyTrained:
    """Trains each site from ``received`` on its own rows of the data, as `train_plain` does.

    All of it is in memory at once: see `sites_at_once`. A site without records has a zero update.

    Args:
        model: the kind of model; its own weights are neither read nor written.
        task: whose losses count.
        data: the records of all sites, best on the model's device already.
        rows: of each site, row numbers in the data.
        received: float32, shape [d].
        recipe: how to train.
        seeds: of each site's order of batches.

    Raises:
        ValueError: the recipe or the data are of a kind that goes one site at a time.
    """
    if fault := why_not_plain(recipe, data):
        raise ValueError(fault)
    sites = _Sites(model, task, data, received, len(rows))
    losses = np.full(len(rows), np.nan)
    steps = np.array([steps_of(recipe, len(own)) for own in rows], np.int64)
    for group in sites.groups(rows, steps, recipe, private=False):
        own, parameters = [rows[site] for site in group], sites.parameters(len(group))
        optimizer = Steps(recipe, sites.start, parameters)
        total = torch.zeros(len(group), dtype=torch.float32, device=model.device)
        for number, step in enumerate(plain_steps(own, recipe, [seeds[site] for site in group])):
            count = len(step.rows)
            weights = [values[:count] for values in parameters] if number else sites.start
            loss, gradient = sites.stacked.gradient(weights, sites.batch(step))
            optimizer.take(gradient, count)
            total[:count] += loss
        taken = steps[group] > 0
        losses[group[taken]] = total.cpu().numpy()[taken] / steps[group][taken]
        sites.finish(group, parameters)
    return ManyTrained(sites.updates, sites.diverged, losses)


def train_private_many(
    model: ResidentModel,
    task: Task,
    data: Records,
    rows: Sequence[Rows],
    received: Vector,
    recipe: Recipe,
    plans: Sequence[PrivacyPlan],
) -> ManyTrained:
    """Takes the private steps of each site's plan on its own rows, as `train_private` does.

    Sampling and noise are secret and each site's are independent of all others': all are parts of
    one keystream. An empty sample is pure noise, and so is a site without records.

    Args:
        model: the kind of model; its own weights are neither read nor written.
        task: whose losses count.
        data: the records of all sites, best on the model's device already.
        rows: of each site, row numbers in the data; each record is a person.
        received: float32, shape [d].
        recipe: how to train.
        plans: of each site, for noise of its own.

    Raises:
        ValueError: the plans, the recipe or the data are of a kind that goes one site at a time.
    """
    if fault := why_not_private(model.device, recipe, data, plans):
        raise ValueError(fault)
    sites, secret = _Sites(model, task, data, received, len(rows)), SecretRandom()
    steps = np.array([plan.steps_per_round for plan in plans], np.int64)
    sites.check_weights(np.arange(len(rows)), [piece.unsqueeze(0) for piece in sites.start])
    for group in sites.groups(rows, steps, recipe, private=True):
        parameters, taken = sites.parameters(len(group)), steps[group]
        optimizer = Steps(recipe, sites.start, parameters)
        planned = _Plans.of([plans[site] for site in group], model.device)
        for number in range(int(taken.max())):
            now = group[taken > number]
            weights = [values[: len(now)] for values in parameters] if number else sites.start
            if number:
                sites.check_weights(now, weights)
            own = [rows[site] for site in now]
            gradient = sites.noised(own, weights, secret, planned.first(len(now)))
            optimizer.take(Dense(gradient), len(now))
        sites.finish(group, parameters)
    return ManyTrained(sites.updates, sites.diverged, None)


class _Plans(NamedTuple):
    """What the steps of several sites' plans need, float64 where the device has it, [sites]."""

    deviations: torch.Tensor
    clipping_norms: torch.Tensor
    denominators: torch.Tensor
    rates: torch.Tensor

    @classmethod
    def of(cls, plans: Sequence[PrivacyPlan], device: torch.device) -> "_Plans":
        """Takes them from the plans."""
        names = ("own_noise", "clipping_norm", "denominator", "sample_rate")
        values = [[float(getattr(plan, name)) for plan in plans] for name in names]
        return cls(*torch.tensor(values, dtype=precision_on(device), device=device))

    def first(self, sites: int) -> "_Plans":
        """Returns those of the first so many sites."""
        return _Plans(*(values[:sites] for values in self))


class _Sites:
    """Data, weights and results that all groups of sites share."""

    def __init__(
        self, model: ResidentModel, task: Task, data: Records, received: Vector, sites: int
    ) -> None:
        self._model, self._data = model, data
        own = received if received.flags.writeable else received.copy()
        vector = torch.from_numpy(own).to(model.device, model.dtype)
        self._sizes = model.layout.sizes
        pieces = torch.split(vector, self._sizes)
        self.start = [
            piece.view(shape) for piece, shape in zip(pieces, model.layout.shapes, strict=True)
        ]
        self._features = data.features.to(model.device)
        self._labels = data.labels.to(model.device)
        self.stacked = stacked(model.module, task, data.features.shape[1:])
        self.updates = np.empty((sites, model.layout.size), np.float32)
        self.diverged = np.zeros(sites, np.bool_)

    def groups(
        self, rows: Sequence[Rows], steps: NDArray[np.int64], recipe: Recipe, *, private: bool
    ) -> Iterator[Rows]:
        """Yields sites that go together: of about equal size, those that take more steps first."""
        sizes = np.array([len(own) for own in rows], np.int64)
        order = np.lexsort((-sizes, -steps))
        room = Room.of(self._model, recipe, self._data, private=private)
        while len(order):
            count = len(order)
            if self._model.device.type == "cpu":
                largest = room.site(int(sizes[order].max()), int(steps[order[0]]))
                count = max(1, _GROUP_BYTES // largest)
            yield order[:count]
            order = order[count:]

    def parameters(self, sites: int) -> list[torch.Tensor]:
        """Returns weights of their own for so many sites, shape [sites, *shape] each."""
        return [piece.expand(sites, *piece.shape).clone() for piece in self.start]

    def batch(self, step: Step) -> Batch:
        """Returns the records of a step."""
        index = torch.from_numpy(step.rows).to(self._model.device)
        shape = (*step.rows.shape, *self._features.shape[1:])
        features = self._features.index_select(0, index.flatten()).view(shape)
        counted = None if step.counted.all() else torch.from_numpy(step.counted)
        return Batch(
            features.to(self._model.dtype),
            self._labels[index],
            None if counted is None else counted.to(self._model.device),
        )

    def noised(
        self,
        rows: Sequence[Rows],
        weights: Sequence[torch.Tensor],
        secret: SecretRandom,
        plans: _Plans,
    ) -> list[torch.Tensor]:
        """Returns each site's noised sum of clipped gradients over its plan's denominator."""
        device, dtype, count = self._model.device, self._model.dtype, len(rows)
        # Sums are in units of the noise, which then needs no pass of its own.
        noise = torch.from_numpy(secret.gaussian(count * sum(self._sizes))).to(device, dtype)
        parts = torch.split(noise, [count * size for size in self._sizes])
        totals = [
            part.view(count, *piece.shape) for part, piece in zip(parts, self.start, strict=True)
        ]
        step = sampled(rows, plans.rates.cpu().numpy(), secret)
        if step.rows.size:
            self.stacked.add_clipped(
                totals, weights, self.batch(step), plans.clipping_norms, 1.0 / plans.deviations
            )
        scales = (plans.deviations / plans.denominators).to(dtype)
        for total in totals:
            total.mul_(scales.view(-1, *[1] * (total.dim() - 1)))
        return totals

    def check_weights(self, sites: Rows, weights: Sequence[torch.Tensor]) -> None:
        """Notes where `private.check_weights` would refuse to go on."""
        for values in weights:
            # What is no number is not below any. PyTorch's own norm takes ten times as long.
            flat = values.flatten(1)
            fits = torch.maximum(flat.amax(1), -flat.amin(1)) <= LARGEST_WEIGHT
            self.diverged[sites] |= ~fits.cpu().numpy()

    def finish(self, sites: Rows, parameters: Sequence[torch.Tensor]) -> None:
        """Keeps the updates of a group."""
        first, last = int(sites[0]), int(sites[-1]) + 1
        inside = self._model.device.type == "cpu" and np.array_equal(sites, np.arange(first, last))
        if inside:
            change = torch.from_numpy(self.updates[first:last])
        else:
            change = torch.empty(len(sites), sum(self._sizes), device=self._model.device)
        parts = torch.split(change, self._sizes, dim=1)
        for part, values, start in zip(parts, parameters, self.start, strict=True):
            torch.sub(values.flatten(1), start.flatten(), out=part)
        sums = change.sum(dim=1)
        doubtful = ~torch.isfinite(sums)
        if bool(doubtful.any()):
            fits = torch.isfinite(change[doubtful]).all(dim=1).cpu().numpy()
            self.diverged[sites[doubtful.cpu().numpy()]] |= ~fits
        if not inside:
            self.updates[sites] = change.cpu().numpy()
