"""Layers whose kernels treat every row alike, in place of some that do not.

A matrix product may take another path for a row whose address is not a multiple of 16 bytes, and
round in another way there. Rows of 30 numbers begin at such an address every other time, so that
each gradient would depend on how many records stand in front of its own. Behind columns of zeros
all rows begin alike; weights, gradients and the model's file know nothing of them.

A sigmoid is computed by vectors of numbers, but the last few of each thread's share one by one and
by another function, which differs in one of 25 values: too seldom for `likeness` to see. The
hyperbolic tangent has one function for all. So has any activation in pieces that no second thread
gets a share of, as batches are multiples of 64 rows.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional

_WIDTH = 16  # floats, 64 bytes
_UNSHARED = 1 << 13  # numbers that PyTorch leaves to one thread; of most functions, four times that
_SHARED = {nn.CELU, nn.ELU, nn.GELU, nn.Mish, nn.SELU, nn.SiLU, nn.Softplus}


def linear(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Returns ``inputs @ weight.T + bias`` from rows that all begin alike."""
    if missing := -inputs.shape[-1] % _WIDTH:
        inputs, weight = (functional.pad(values, (0, missing)) for values in (inputs, weight))
    return functional.linear(inputs, weight, bias)


def sigmoid(inputs: torch.Tensor) -> torch.Tensor:
    """Returns the logistic function of each number, wherever it stands."""
    return 0.5 + 0.5 * torch.tanh(0.5 * inputs)


def unshared(
    function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor
) -> torch.Tensor:
    """Returns a function of each number, which no place among several threads decides."""
    pieces = torch.split(inputs.reshape(-1), _UNSHARED)
    return torch.cat([function(piece) for piece in pieces]).view(inputs.shape)


def align(module: nn.Module) -> list[nn.Module]:
    """Gives a model's layers such forward passes; returns those layers, for `restore`."""
    layers: list[nn.Module] = []
    for layer in module.modules():
        # By exact type: what a subclass computes, nobody knows.
        if type(layer) is nn.Linear and layer.in_features % _WIDTH:
            vars(layer)["forward"] = partial(_forward, layer)
            layers.append(layer)
        elif type(layer) is nn.Sigmoid:
            vars(layer)["forward"] = sigmoid
            layers.append(layer)
        elif type(layer) in _SHARED:
            vars(layer)["forward"] = partial(unshared, layer.forward)
            layers.append(layer)
    return layers


def restore(layers: list[nn.Module]) -> None:
    """Takes the layers' own forward passes off again, and the layers off the list."""
    while layers:
        del layers.pop().forward


def _forward(layer: nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
    return linear(inputs, layer.weight, layer.bias)
