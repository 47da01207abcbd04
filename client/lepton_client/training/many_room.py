"""Which models and recipes many sites train together, and how many sites fit into memory."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from lepton_client.training.many_batches import steps_of
from lepton_client.training.many_chain import is_chain, leaves
from lepton_client.training.resident import ResidentModel
from lepton_common.datasets.records import Records
from lepton_common.messages import Recipe
from lepton_common.privacy.plan import PrivacyPlan

# Layers that look at a record alone and draw no random numbers.
_KNOWN = (
    nn.Linear,
    nn.Conv2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.GroupNorm,
    nn.Flatten,
    nn.ReLU,
    nn.Tanh,
    nn.Sigmoid,
)
# Products of a batch's convolutions beyond which a CPU computes them no faster together: there
# the overhead is small, and kernels for one set of weights are better. Private gradients take
# more steps one at a time, whose batches are filled up.
_MOST_PRODUCTS, _MOST_PRIVATE_PRODUCTS = 6_000_000, 30_000_000


class _Work(NamedTuple):
    """What one record costs: numbers that layers return, and products of convolutions."""

    outputs: int
    products: int


def why_not_together(
    model: ResidentModel, recipe: Recipe, data: Records, records: int, mode: str | None
) -> str | None:
    """Returns a sentence why sites go one at a time; None where they can be trained at once.

    Args:
        model: the kind of model.
        recipe: how to train.
        data: the records of all sites.
        records: of the largest site.
        mode: of the privacy plan; None for training without privacy.
    """
    if mode not in (None, "record"):
        return f"Privacy in the mode {mode} goes one site at a time: its sums are whole numbers."
    fault = why_not_private(model.device, recipe, data, ()) if mode else why_not_plain(recipe, data)
    if fault:
        return fault
    layers = leaves(model.module)
    if layers is None:
        return "The model is no plain sequence of layers, so its sites go one at a time."
    for layer in layers:
        if type(layer) not in _KNOWN:
            return f"{type(layer).__name__} layers go one site at a time: they are not stacked."
    own = [parameter for layer in layers for parameter in layer.parameters()]
    if len(own) != len(model.layout.names):
        return "The model uses weights several times, so its sites go one at a time."
    if not all(parameter.requires_grad for parameter in model.module.parameters()):
        return "The model has weights that are not trained, so its sites go one at a time."
    if model.device.type != "cpu" or len(data) == 0:
        return None
    if is_chain(model.module, data.features.shape[1:]):
        return None
    width, most = min(recipe.batch_size, records), _MOST_PRODUCTS
    if mode:
        width, most = records, _MOST_PRIVATE_PRODUCTS
    if width * _work(model, data).products > most:
        return "On a CPU convolutions of this size are no faster together; sites go one at a time."
    return None


def why_not_plain(recipe: Recipe, data: Records) -> str | None:
    """Returns a sentence why plain training goes one site at a time; None where it need not."""
    if recipe.precision != "float32":
        return f"Training in {recipe.precision} goes one site at a time; only float32 is stacked."
    if recipe.mixup:
        return "Mixed records go one site at a time; only records as they are are stacked."
    return _why_not_labels(data)


def why_not_private(
    device: torch.device, recipe: Recipe, data: Records, plans: Sequence[PrivacyPlan]
) -> str | None:
    """Returns a sentence why private training goes one site at a time; None where it need not."""
    if recipe.mixup:
        return "Mixed records are never private, whether one site at a time or many."
    if data.units is not None:
        return "People with several records go one site at a time; only single records are stacked."
    if recipe.augmentations > 1:
        return "Several views of a record go one site at a time; only single ones are stacked."
    if device.type == "mps":
        return "Apple's GPUs have no float64 for private sums, so sites go one at a time."
    if any(plan.shared is not None for plan in plans):
        return "Sums with shared noise go one site at a time: they are whole numbers."
    return _why_not_labels(data)


def _why_not_labels(data: Records) -> str | None:
    if data.labels.dim() != 1:
        return "Labels of several values go one site at a time; only single ones are stacked."
    return None


def sites_at_once(
    model: ResidentModel,
    recipe: Recipe,
    data: Records,
    records: int,
    free_bytes: int,
    *,
    private: bool,
) -> int:
    """Returns how many sites fit into memory together, their updates included; at least 1.

    On a CPU, where only some are worked on at a time while others wait, more would fit.

    Args:
        model: the kind of model.
        recipe: how to train.
        data: the records of all sites, which are in memory already.
        records: of the largest site.
        free_bytes: of the memory of the device.
        private: whether under a privacy plan.
    """
    room = Room.of(model, recipe, data, private=private)
    steps = 0 if private else steps_of(recipe, records)
    return max(1, free_bytes // (room.site(records, steps) + 4 * model.layout.size))


class Room(NamedTuple):
    """About how many bytes the training of one site takes, beside its update.

    Attributes:
        model: for all that is as large as the model.
        record: for each record that goes through.
        place: for each place in an order that is drawn beforehand.
        width: most records that go through at a time.
    """

    model: int
    record: int
    place: int
    width: float

    @classmethod
    def of(cls, model: ResidentModel, recipe: Recipe, data: Records, *, private: bool) -> "Room":
        """Works out what a model takes under a recipe."""
        number = model.dtype.itemsize
        # Weights, what the optimiser remembers, and the change.
        copies = 2 + (3 if recipe.optimizer == "adam" else 1)
        chain = is_chain(model.module, data.features.shape[1:])
        if private or not chain:
            copies += 1  # a gradient that is written out
        if private and not chain:
            copies += 2  # records' gradients, and their sum
        inputs = int(data.features[:1].numel())
        outputs = _work(model, data).outputs if len(data) else 0
        return cls(
            model.layout.size * copies * number,
            # Of outputs the gradients too.
            (inputs + 3 * outputs) * number,
            0 if private else np.dtype(np.int64).itemsize,
            float("inf") if private else recipe.batch_size,
        )

    def site(self, records: int, steps: int) -> int:
        """Returns the bytes of a site of so many records that takes so many steps."""
        width = int(min(self.width, records))
        return self.model + width * (self.record + steps * self.place)


def _work(model: ResidentModel, data: Records) -> _Work:
    """Counts by sending one record through; nothing is kept of it."""
    outputs, products = [], []

    def count(layer: nn.Module, _: Any, output: torch.Tensor) -> None:  # noqa: ANN401
        outputs.append(output.numel())
        if isinstance(layer, nn.Conv2d):
            products.append(output.numel() * layer.weight[0].numel())

    handles = [layer.register_forward_hook(count) for layer in leaves(model.module) or []]
    try:
        with torch.no_grad():
            model.module(data.features[:1].to(model.device, model.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return _Work(sum(outputs), sum(products))
