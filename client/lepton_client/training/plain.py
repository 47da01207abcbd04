"""Training without privacy: mini-batches in an order drawn from a public seed."""

from collections.abc import Iterator

import numpy as np
import torch

from lepton_client.training.optimizers import new_optimizer
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Vector, trained
from lepton_common.datasets.records import Records
from lepton_common.errors import SettingsError
from lepton_common.messages import Recipe
from lepton_common.tasks.augmentation import mix
from lepton_common.tasks.catalog import Task

_MIXING = 1


def train_plain(
    model: ResidentModel, task: Task, records: Records, received: Vector, recipe: Recipe, seed: int
) -> tuple[Vector, float]:
    """Trains from ``received`` and returns the update, float32, shape [d], and the mean loss.

    Raises:
        UpdateInvalid: training diverged to values that are not finite.
        SettingsError: records or labels of this kind cannot be mixed.
    """
    if recipe.mixup and not task.mixes:
        raise SettingsError(f"Mixup has no meaning for '{task.name}'; set train.mixup=0.")
    start = model.load(received)
    mixing = np.random.default_rng([_MIXING, seed])  # of its own, so that batches stay as they are
    optimizer = new_optimizer(model.module, recipe)
    features, labels = records.features.to(model.device), records.labels.to(model.device)
    autocast = torch.autocast(
        model.device.type, torch.bfloat16, enabled=recipe.precision == "bfloat16"
    )
    total, steps = torch.zeros((), device=model.device), 0
    for rows in _batches(len(records), recipe, seed):
        batch = rows.to(model.device)
        optimizer.clear()
        with autocast:
            if recipe.mixup:
                loss = _mixed_losses(model, task, features[batch], labels[batch], recipe, mixing)
            else:
                loss = task.losses(model.module(features[batch]), labels[batch])
            loss = loss.mean()
        torch.autograd.backward(loss)
        if recipe.proximal_mu:
            pull_towards(start, model, recipe.proximal_mu)
        optimizer.step()
        total += loss.detach()
        steps += 1
    optimizer.clear()
    return model.update_since(start), float(total) / steps


def _mixed_losses(
    model: ResidentModel,
    task: Task,
    features: torch.Tensor,
    labels: torch.Tensor,
    recipe: Recipe,
    mixing: np.random.Generator,
) -> torch.Tensor:
    mixed = mix(features, recipe.mixup, mixing)
    outputs = model.module(mixed.features)
    return task.objective.mixed_losses(outputs, labels, labels[mixed.partners], mixed.shares)


def pull_towards(start: torch.Tensor, model: ResidentModel, strength: float) -> None:
    """Adds FedProx' term (Li et al. 2020), strength * (w - w_received), to the gradients."""
    offset = 0
    with torch.no_grad():
        for parameter in trained(model.module):
            stop = offset + parameter.numel()
            reference = start[offset:stop].view(parameter.shape)
            if parameter.grad is not None:
                parameter.grad.add_(parameter - reference, alpha=strength)
            offset = stop


def orders(
    count: int, recipe: Recipe, seed: int, generator: torch.Generator | None = None
) -> Iterator[torch.Tensor]:
    """Yields orders of the row numbers, int64, shape [count], for as many passes as may be taken.

    Args:
        count: number of rows.
        recipe: how long to train.
        seed: public; of the orders.
        generator: seeded anew and used, which saves making one.
    """
    generator = (generator or torch.Generator()).manual_seed(seed)
    for _ in range(recipe.local_epochs or recipe.local_steps or 0):
        yield torch.randperm(count, generator=generator)


def _batches(count: int, recipe: Recipe, seed: int) -> Iterator[torch.Tensor]:
    """Yields row numbers: whole epochs, or exactly ``local_steps`` batches over as many epochs."""
    left = recipe.local_steps
    for order in orders(count, recipe, seed):
        for rows in torch.split(order, recipe.batch_size):
            if left == 0:
                return
            yield rows
            left = None if left is None else left - 1
