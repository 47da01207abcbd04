"""The optimisers of `optimizers.new_optimizer` for many sites at once, on stacked parameters."""

from collections.abc import Sequence
from typing import Protocol

import torch

from lepton_common.messages import Recipe

_BETAS, _EPSILON = (0.9, 0.999), 1e-8  # PyTorch's own for Adam


class Gradient(Protocol):
    """What a step has found: a gradient of each parameter for each site."""

    def add_to(self, totals: Sequence[torch.Tensor], *, keep: float, scale: float) -> None:
        """Makes of each total ``keep * total + scale * gradient``, shape [sites, *shape] each."""


class Steps:
    """Takes the steps of sites that all began at the same weights.

    Plain SGD adds gradients to the weights themselves, and momentum to its own memory, so that
    where these are products, the product is written nowhere else.
    """

    def __init__(
        self, recipe: Recipe, start: Sequence[torch.Tensor], parameters: list[torch.Tensor]
    ) -> None:
        """Takes the weights at which all begin, of shape [*shape], and those of each site."""
        self._recipe, self._start, self._parameters = recipe, start, parameters
        self._taken = 0
        adam = recipe.optimizer == "adam"
        self._direct = not (adam or recipe.momentum or recipe.weight_decay or recipe.proximal_mu)
        memories = 0 if self._direct else 3 if adam else 1
        self._memory = [[torch.zeros_like(p) for p in parameters] for _ in range(memories)]

    def take(self, gradient: Gradient, sites: int) -> None:
        """Takes one step of the first so many sites; no site that has paused goes on later."""
        recipe, rate = self._recipe, self._recipe.learning_rate
        parameters = [parameter[:sites] for parameter in self._parameters]
        memory = [[values[:sites] for values in kept] for kept in self._memory]
        self._taken += 1
        if self._direct:
            gradient.add_to(parameters, keep=1.0, scale=-rate)
            return
        # The terms of decay and of FedProx count like the gradient, and so may join it anywhere.
        momentum = recipe.momentum if recipe.optimizer == "sgd" and self._taken > 1 else 0.0
        gradient.add_to(memory[0], keep=momentum, scale=1.0)
        for start, parameter, total in zip(self._start, parameters, memory[0], strict=True):
            if recipe.proximal_mu:
                total.add_(parameter - start, alpha=recipe.proximal_mu)
            if recipe.weight_decay:
                total.add_(parameter, alpha=recipe.weight_decay)
        if recipe.optimizer == "sgd":
            for parameter, total in zip(parameters, memory[0], strict=True):
                parameter.add_(total, alpha=-rate)
            return
        corrections = [1.0 - beta**self._taken for beta in _BETAS]
        for parameter, total, mean, square in zip(parameters, *memory, strict=True):
            mean.lerp_(total, 1.0 - _BETAS[0])
            square.mul_(_BETAS[1]).addcmul_(total, total, value=1.0 - _BETAS[1])
            length = square.sqrt().div_(corrections[1] ** 0.5).add_(_EPSILON)
            parameter.addcdiv_(mean, length, value=-rate / corrections[0])
