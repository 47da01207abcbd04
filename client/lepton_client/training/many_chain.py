"""Chains of linear layers and activations at many sites at once, as batched matrix products.

Several times faster than ``torch.func.vmap``: a product of records is added to the weights, or to
whatever an optimiser remembers, and is written nowhere else.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lepton_client.training.layer_norms import square_sums
from lepton_client.training.many_layers import AnyLayers, Batch, Stacked, factors_of
from lepton_client.training.many_optimizers import Gradient
from lepton_common.tasks.catalog import Task

# Of an activation's output and the gradient there: the gradient of its input.
_BACK: dict[type[nn.Module], Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    nn.ReLU: lambda signal, output: torch.ops.aten.threshold_backward(signal, output, 0),
    nn.Tanh: torch.ops.aten.tanh_backward,
    nn.Sigmoid: torch.ops.aten.sigmoid_backward,
}
_FORWARD: dict[type[nn.Module], Callable[[torch.Tensor], torch.Tensor]] = {
    nn.ReLU: torch.relu,
    nn.Tanh: torch.tanh,
    nn.Sigmoid: torch.sigmoid,
}


def stacked(module: nn.Module, task: Task, record: Sequence[int]) -> Stacked:
    """Returns what computes a model's gradients at many sites, for records of that shape."""
    return Chain(module, task) if is_chain(module, record) else AnyLayers(module, task)


def leaves(module: nn.Module) -> list[nn.Module] | None:
    """Returns the layers of nested sequences, in order; None where it is built of other things."""
    if type(module) is not nn.Sequential:
        return [module] if not any(True for _ in module.children()) else None
    found: list[nn.Module] = []
    for child in module:
        inside = leaves(child)
        if inside is None:
            return None
        found += inside
    return found


def is_chain(module: nn.Module, record: Sequence[int]) -> bool:
    """Says whether a model is linear layers and activations on flat records, and nothing else."""
    layers = leaves(module) or []
    if layers and _flattens(layers[0]):
        layers = layers[1:]
    elif len(record) != 1:
        return False
    own = [parameter for layer in layers for parameter in layer.parameters()]
    return (
        any(type(layer) is nn.Linear for layer in layers)
        and all(type(layer) is nn.Linear or type(layer) in _BACK for layer in layers)
        and len(own) == len({id(parameter) for parameter in own})
    )


def _flattens(layer: nn.Module) -> bool:
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


@dataclass
class _Product:
    """The gradient of a linear layer: signal.T @ inputs, and the signal's sum where it has a bias.

    Attributes:
        signal: shape [sites, width, outputs].
        inputs: shape [sites, width, inputs].
        weight: which parameter the weight is.
        bias: which one the bias is, if there is one.
    """

    signal: torch.Tensor
    inputs: torch.Tensor
    weight: int
    bias: int | None


class _Products:
    def __init__(self, products: list[_Product]) -> None:
        self._products = products

    def add_to(self, totals: Sequence[torch.Tensor], *, keep: float, scale: float) -> None:
        for product in self._products:
            weight = totals[product.weight]
            weight.baddbmm_(product.signal.mT, product.inputs, beta=keep, alpha=scale)
            if product.bias is not None:
                bias = totals[product.bias]
                bias.mul_(keep).add_(product.signal.sum(1), alpha=scale)


class Chain(Stacked):
    """Linear layers with activations between them, on flat records."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__(module, task)
        place = {id(parameter): at for at, parameter in enumerate(module.parameters())}
        self._layers: list[tuple[type[nn.Module], int, int | None]] = []
        for layer in leaves(module) or []:
            if type(layer) is nn.Linear:
                at = place[id(layer.weight)]
                self._layers.append((nn.Linear, at, place.get(id(layer.bias))))
            elif type(layer) in _BACK:
                self._layers.append((type(layer), 0, None))
        self._linear = sum(kind is nn.Linear for kind, _, _ in self._layers)

    def gradient(
        self, parameters: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, Gradient]:
        """Returns losses and gradient; see `Stacked`."""
        shares = batch.shares()
        losses, products = self._products(parameters, batch, shares)
        return (losses * shares).sum(1), _Products(products)

    def add_clipped(
        self,
        totals: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        batch: Batch,
        clipping_norms: torch.Tensor,
        scales: torch.Tensor,
    ) -> None:
        """Adds clipped sums; see `Stacked`."""
        _, products = self._products(parameters, batch, None)
        squared = torch.zeros_like(batch.labels, dtype=clipping_norms.dtype)
        for product in products:
            # The norm of an outer product is the product of the norms (Goodfellow 2015).
            lengths = square_sums(product.inputs.flatten(0, 1)).add_(product.bias is not None)
            lengths *= square_sums(product.signal.flatten(0, 1))
            squared += lengths.view_as(squared)
        factors, unusable = factors_of(squared, clipping_norms, scales, batch.counted)
        factors = factors.to(batch.features.dtype).unsqueeze(2)
        for product in products:
            signal, inputs = product.signal, product.inputs
            if unusable is not None:
                # Zero times a value that is not finite would reach the other records.
                signal = signal.masked_fill(unusable, 0.0)
                inputs = inputs.masked_fill(unusable, 0.0)
            signal = signal * factors
            totals[product.weight].baddbmm_(signal.mT, inputs)
            if product.bias is not None:
                totals[product.bias].add_(signal.sum(1))

    def _products(
        self, parameters: Sequence[torch.Tensor], batch: Batch, shares: torch.Tensor | None
    ) -> tuple[torch.Tensor, list[_Product]]:
        """Returns each record's loss, and the gradients of their sum, weighted by shares."""
        values = batch.features.flatten(2)
        kept = []  # what linear layers read, and what activations return
        for kind, weight, bias in self._layers:
            read = values
            if kind is not nn.Linear:
                values = _FORWARD[kind](values)
            else:
                values = torch.matmul(values, parameters[weight].mT)
                if bias is not None:
                    values += parameters[bias].unsqueeze(-2)
            kept.append(read if kind is nn.Linear else values)
        with torch.enable_grad():
            logits = values.flatten(0, 1).requires_grad_()
            losses = self._task.losses(logits, batch.labels.flatten())
            total = losses.sum() if shares is None else (losses * shares.flatten()).sum()
            (signal,) = torch.autograd.grad(total, logits)
        signal = signal.view_as(values)
        products: list[_Product] = []
        for (kind, weight, bias), values in zip(self._layers[::-1], kept[::-1], strict=True):
            if kind is not nn.Linear:
                signal = _BACK[kind](signal, values)
                continue
            products.append(_Product(signal, values, weight, bias))
            if len(products) == self._linear:  # no parameter lies before
                break
            signal = torch.matmul(signal, parameters[weight])
        return losses.detach().view(batch.labels.shape), products
