"""Proof, on this machine, that nothing but a record and the weights decides its gradient.

A row's place in a batch, and the batch's height, must not: a record more in front would otherwise
change the gradients of all others, and a server that chose the weights could magnify that to many
clipping norms. Which kernels round alike depends on the processor, the number of threads and the
libraries, so it is tried where it is used: one and the same made-up record at every place.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from lepton_client.training.bookkeeping import ClippedGradients
from lepton_client.training.opacus_gradients import OpacusGradients
from lepton_client.training.resident import ResidentModel
from lepton_common.models.tokens import spread
from lepton_common.tasks.catalog import Task

Kind = type[ClippedGradients] | type[OpacusGradients]
_SEED = 20261121
_LEAST_OUTPUTS = 8
_LARGEST = 100.0  # as large as a server may choose weights
SMALLEST = 64
"""Heights are multiples of this, at which a CPU's kernels mostly compute every row alike."""
FINE = 16
"""Below it, of this, where a machine's kernels do so too: small batches need less filling up."""


def rows_alike(
    model: ResidentModel, kind: Kind, task: Task, input_shape: tuple[int, ...], heights: list[int]
) -> bool:
    """Says whether in batches of those heights every row is like the first of the smallest one.

    All that an engine uses of a row is compared bit for bit: what layers read, what comes back to
    them, gradients that are written out, norms. The weights are our own: half of them random, and
    half large with terms that cancel, where the last bits are all there is.

    Args:
        model: the model; its weights are put back.
        kind: the engine that it trains with.
        task: whose losses count.
        input_shape: of one record.
        heights: rows in a batch.
    """
    with own_weights(model.module):
        return all(
            _alike(model, kind, task, input_shape, heights, _SEED + draw)
            for draw in range(_draws(model.module))
        )


def _alike(
    model: ResidentModel,
    kind: Kind,
    task: Task,
    input_shape: tuple[int, ...],
    heights: list[int],
    seed: int,
) -> bool:
    generator = torch.Generator().manual_seed(seed)
    record = 0.5 + torch.rand(1, *input_shape, generator=generator)
    record = spread(model.module, record).to(model.device, model.dtype)
    label = task.objective.made_up_labels(1, 1, input_shape, generator).to(model.device)
    _cancelling_weights(model.module, record, seed)
    seen: dict[str, torch.Tensor] = {}
    with kind(model.module) as engine:
        for rows in dict.fromkeys((SMALLEST, *heights)):
            labels = label.expand(rows, *label.shape[1:]).contiguous()
            batch = record.expand(rows, *record.shape[1:]).contiguous()
            for name, values in engine.each_row(task.losses, batch, labels):
                first = seen.setdefault(name, values[:1].clone())
                if not bool((values == first).all()):  # neither if it is no number
                    return False
    return bool(seen)


def _draws(module: nn.Module) -> int:
    """Returns how often to try: the last bits of few outputs may agree by chance."""
    outputs = [len(parameter) for parameter in module.parameters() if parameter.dim() > 1]
    return -(-_LEAST_OUTPUTS // min(outputs, default=1))


@contextmanager
def own_weights(module: nn.Module) -> Iterator[None]:
    """Lets weights be changed in the context, and puts them back."""
    kept = [parameter.detach().clone() for parameter in module.parameters()]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in zip(module.parameters(), kept, strict=True):
                parameter.copy_(values)


@torch.no_grad()
def ordinary_weights(module: nn.Module, seed: int = _SEED) -> None:
    """Fills a model with random weights of a usual size, always the same."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        width = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
        drawn = torch.randn(parameter.shape, generator=generator) / width**0.5
        parameter.copy_(drawn if parameter.dim() > 1 else 1.0 + 0.1 * drawn)


@torch.no_grad()
def _cancelling_weights(module: nn.Module, record: torch.Tensor, seed: int) -> None:
    """Gives every other unit large weights of both signs, and a bias that takes away their sum."""
    ordinary_weights(module, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            drawn = _LARGEST * (0.9 + 0.1 * torch.rand(parameter.shape, generator=generator))
            drawn.view(len(drawn), -1)[:, 1::2] *= -1.0
            parameter[::2] = drawn[::2].to(parameter)
    hooks = [
        layer.register_forward_hook(partial(_cancel, dim))
        for layer in module.modules()
        for kinds, dim in _AFFINE
        if type(layer) in kinds and isinstance(layer.bias, nn.Parameter)
    ]
    try:
        module(record)
    finally:
        for hook in hooks:
            hook.remove()


# Layers with a bias for each entry of their output's dimension.
_AFFINE: tuple[tuple[tuple[type[nn.Module], ...], int], ...] = (
    ((nn.Linear,), -1),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1),
)


def _cancel(dim: int, layer: Any, args: tuple[Any, ...], output: torch.Tensor) -> Any:  # noqa: ANN401
    values = output.movedim(dim, 0).flatten(1)
    layer.bias[::2] -= values[::2, values.shape[1] // 2]
    again: Callable[..., Any] = layer.forward
    return again(*args)
