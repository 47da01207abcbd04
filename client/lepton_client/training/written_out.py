"""The sum of clipped gradients from every record's own, written out: simple, large and slow."""

from abc import ABC, abstractmethod
from typing import Self

import torch
from torch import nn

from lepton_client.training.bookkeeping import Losses
from lepton_client.training.layer_norms import precision_on
from lepton_common.arrays import trained

_ROWS_AT_ONCE = 32


class WrittenOut(ABC):
    """An engine that has each record's gradient at hand, between `__enter__` and `__exit__`."""

    @abstractmethod
    def __init__(self, module: nn.Module) -> None:
        """Takes a model."""

    @abstractmethod
    def __enter__(self) -> Self:
        """Begins to work on the model."""

    @abstractmethod
    def __exit__(self, *_: object) -> None:
        """Leaves the model as it was."""

    def sum(
        self,
        losses: Losses,
        features: torch.Tensor,
        labels: torch.Tensor,
        *,
        clipping_norm: float,
        unit_of_row: torch.Tensor | None = None,
        units: int | None = None,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns what `ClippedGradients.sum` returns, by way of each record's own gradient."""
        precision = precision_on(features.device)
        per_unit = self._record_gradients(losses, features, labels)
        if mask is not None:
            per_unit[~mask] = 0.0
        if unit_of_row is not None and units is not None:
            per_record, per_unit = per_unit, per_unit.new_zeros(units, per_unit.shape[1])
            per_unit.index_add_(0, unit_of_row, per_record)
        # In double precision: a float32 norm over a million elements comes out too small.
        norms = torch.linalg.vector_norm(per_unit, dim=1, dtype=precision)
        finite = torch.isfinite(norms)
        per_unit[~finite] = 0.0
        factors = torch.where(finite, clipping_norm / norms.clamp(min=1e-30), 0.0).clamp(max=1.0)
        total = torch.zeros(per_unit.shape[1], dtype=precision, device=features.device)
        for start in range(0, len(per_unit), _ROWS_AT_ONCE):
            stop = start + _ROWS_AT_ONCE
            total += factors[start:stop] @ per_unit[start:stop].to(precision)
        return total

    @abstractmethod
    def _record_gradients(
        self, losses: Losses, features: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Returns each record's gradient of its own loss, shape [rows, d]."""


class EachAlone(WrittenOut):
    """Each record alone through the model and back: right for every model, by definition."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def _record_gradients(
        self, losses: Losses, features: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        parameters = trained(self._module)
        each = []
        for row in range(len(features)):
            loss = losses(self._module(features[row : row + 1]), labels[row : row + 1]).sum()
            # Of a parameter that is not used, zeros.
            gradients = torch.autograd.grad(
                loss, parameters, allow_unused=True, materialize_grads=True
            )
            each.append(torch.cat([gradient.flatten() for gradient in gradients]))
        return torch.stack(each)
