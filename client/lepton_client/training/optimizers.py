"""The optimisers of one site: PyTorch's own arithmetic, without what its classes bring along.

The first step of a `torch.optim.Optimizer` imports PyTorch's compiler, which takes as long as
PyTorch itself in each process, and which nothing here uses.
"""

from abc import ABC, abstractmethod

import torch
from torch import nn
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from lepton_common.arrays import trained
from lepton_common.messages import Recipe


class Optimizer(ABC):
    """Takes steps against the gradients of a model's trained parameters."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        """Begins anew: nothing is remembered of earlier rounds."""
        self._parameters, self._recipe = list(trained(module)), recipe

    def clear(self) -> None:
        """Lets go of all gradients."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        """Takes one step; a parameter without a gradient stays as it is."""
        grads = {n: p.grad for n, p in enumerate(self._parameters) if p.grad is not None}
        with torch.no_grad():
            self._take(list(grads), [self._parameters[n] for n in grads], list(grads.values()))

    @abstractmethod
    def _take(
        self, places: list[int], parameters: list[torch.Tensor], grads: list[torch.Tensor]
    ) -> None: ...


class Sgd(Optimizer):
    """Stochastic gradient descent, with momentum and weight decay, as `torch.optim.SGD`."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        """Begins without momentum."""
        super().__init__(module, recipe)
        self._momenta: dict[int, torch.Tensor | None] = {}

    def _take(
        self, places: list[int], parameters: list[torch.Tensor], grads: list[torch.Tensor]
    ) -> None:
        momenta = [self._momenta.get(place) for place in places]
        sgd(
            parameters,
            grads,
            momenta,
            weight_decay=self._recipe.weight_decay,
            momentum=self._recipe.momentum,
            lr=self._recipe.learning_rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._recipe.momentum:
            self._momenta.update(zip(places, momenta, strict=True))


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015), with weight decay, as `torch.optim.Adam`."""

    def __init__(self, module: nn.Module, recipe: Recipe) -> None:
        """Begins with averages of nothing."""
        super().__init__(module, recipe)
        self._kept: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def _take(
        self, places: list[int], parameters: list[torch.Tensor], grads: list[torch.Tensor]
    ) -> None:
        for place, parameter in zip(places, parameters, strict=True):
            if place not in self._kept:
                zeros = torch.zeros_like(parameter), torch.zeros_like(parameter)
                self._kept[place] = (*zeros, torch.tensor(0.0))
        means, squares, steps = zip(*(self._kept[place] for place in places), strict=True)
        adam(
            parameters,
            grads,
            list(means),
            list(squares),
            [],
            list(steps),
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._recipe.learning_rate,
            weight_decay=self._recipe.weight_decay,
            eps=1e-8,
            maximize=False,
        )


def new_optimizer(module: nn.Module, recipe: Recipe) -> Optimizer:
    """Returns a fresh optimiser over a model's trained parameters."""
    return Adam(module, recipe) if recipe.optimizer == "adam" else Sgd(module, recipe)
