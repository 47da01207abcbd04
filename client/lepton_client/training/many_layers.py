"""Gradients of many sites at once, each with weights of its own, stacked one behind the other.

Any layers go through ``torch.func`` here; `many_chain` has a quicker way for chains of linear ones.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn

from lepton_client.training.layer_norms import square_sums
from lepton_client.training.many_optimizers import Gradient
from lepton_client.training.unit_norms import clip_factors
from lepton_common.tasks.catalog import Task

_RECORD_BYTES = 1 << 25  # of records' own gradients, where they are written out


class Batch:
    """Records of several sites, one site's as many as another's.

    Attributes:
        features: shape [sites, width, *record].
        labels: int64, shape [sites, width].
        counted: bool, shape [sites, width]; False for rows that only fill up; None: all count.
    """

    def __init__(
        self, features: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor | None
    ) -> None:
        self.features, self.labels, self.counted = features, labels, counted

    def shares(self) -> torch.Tensor:
        """Returns what each record counts in its site's mean, shape [sites, width]."""
        if self.counted is None:
            return torch.full_like(
                self.labels, 1.0 / self.labels.shape[1], dtype=self.features.dtype
            )
        counted = self.counted.to(self.features.dtype)
        return counted / counted.sum(1, keepdim=True)


class Stacked(ABC):
    """A model with other weights at each site.

    Parameters are given in the model's order, either of shape [sites, *shape] each, or of shape
    [*shape] where all sites still have the same.
    """

    def __init__(self, module: nn.Module, task: Task) -> None:
        self._module, self._task = module, task

    @abstractmethod
    def gradient(
        self, parameters: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, Gradient]:
        """Returns each site's mean loss, shape [sites], and the gradient of it."""

    @abstractmethod
    def add_clipped(
        self,
        totals: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        batch: Batch,
        clipping_norms: torch.Tensor,
        scales: torch.Tensor,
    ) -> None:
        """Adds each site's sum of its records' gradients, each scaled to at most a norm.

        A record whose gradient is not finite adds zero. Its squared norm and its factor are float64
        where the device has it.

        Args:
            totals: as the weights, shape [sites, *shape] each.
            parameters: the weights.
            batch: the records.
            clipping_norms: float64, shape [sites].
            scales: what each site's sum is multiplied by before it is added, float64, [sites].
        """


class Dense:
    """A gradient that is written out, shape [sites, *shape] for each parameter."""

    def __init__(self, parts: Sequence[torch.Tensor]) -> None:
        self._parts = parts

    def add_to(self, totals: Sequence[torch.Tensor], *, keep: float, scale: float) -> None:
        """Makes of each total ``keep * total + scale * gradient``."""
        for total, part in zip(totals, self._parts, strict=True):
            if keep != 1.0:
                total.mul_(keep)
            total.add_(part, alpha=scale)


class AnyLayers(Stacked):
    """Any layers that do not mix records, by ``torch.func.vmap`` over sites and records."""

    def __init__(self, module: nn.Module, task: Task) -> None:
        super().__init__(module, task)
        self._names = [name for name, _ in module.named_parameters()]

    def gradient(
        self, parameters: Sequence[torch.Tensor], batch: Batch
    ) -> tuple[torch.Tensor, Gradient]:
        """Returns losses and gradient; see `Stacked`."""
        # Sites' weights are apart, so one ordinary backward pass gives each its own gradient;
        # ``torch.func.grad`` takes longer, and a second to be imported.
        own = [
            (values if self._apart(parameters) else values.expand(len(batch.labels), *values.shape))
            .detach()
            .requires_grad_()
            for values in parameters
        ]
        with torch.enable_grad():
            logits = torch.func.vmap(self._outputs)(own, batch.features)
            losses = self._task.losses(logits.flatten(0, 1), batch.labels.flatten())
            each = (losses.view(batch.labels.shape) * batch.shares()).sum(1)
            parts = torch.autograd.grad(each.sum(), own)
        return each.detach(), Dense(parts)

    def add_clipped(
        self,
        totals: Sequence[torch.Tensor],
        parameters: Sequence[torch.Tensor],
        batch: Batch,
        clipping_norms: torch.Tensor,
        scales: torch.Tensor,
    ) -> None:
        """Adds clipped sums; see `Stacked`."""
        alone = torch.func.vmap(torch.func.grad(self._loss), (None, 0, 0))
        each = torch.func.vmap(alone, (0 if self._apart(parameters) else None, 0, 0))
        size = batch.features.itemsize * sum(total.numel() for total in totals)
        step = max(1, _RECORD_BYTES // size)
        for start in range(0, batch.labels.shape[1], step):
            piece = slice(start, start + step)
            features, labels = batch.features[:, piece], batch.labels[:, piece]
            parts = each(list(parameters), features.unsqueeze(2), labels.unsqueeze(2))
            flat = [part.flatten(2) for part in parts]
            squared = torch.stack(
                [square_sums(part.flatten(0, 1)).view(labels.shape) for part in flat]
            ).sum(0)
            counted = None if batch.counted is None else batch.counted[:, piece]
            factors, unusable = factors_of(squared, clipping_norms, scales, counted)
            factors = factors.to(features.dtype).unsqueeze(1)
            for total, part in zip(totals, flat, strict=True):
                if unusable is not None:
                    part = part.masked_fill(unusable, 0.0)
                total += torch.bmm(factors, part).view_as(total)

    def _apart(self, parameters: Sequence[torch.Tensor]) -> bool:
        return parameters[0].dim() > next(self._module.parameters()).dim()

    def _outputs(self, parameters: list[torch.Tensor], features: torch.Tensor) -> torch.Tensor:
        named = dict(zip(self._names, parameters, strict=True))
        outputs: torch.Tensor = torch.func.functional_call(self._module, named, (features,))
        return outputs

    def _loss(
        self, parameters: list[torch.Tensor], features: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Returns the sum of some records' losses as a function of the weights."""
        return self._task.losses(self._outputs(parameters, features), labels).sum()


def factors_of(
    squared: torch.Tensor,
    clipping_norms: torch.Tensor,
    scales: torch.Tensor,
    counted: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns what each record's gradient counts in a clipped sum, and which are not finite.

    Args:
        squared: of each gradient's norm, float64, shape [sites, width].
        clipping_norms: of each site.
        scales: of each site.
        counted: which records count; None: all.

    Returns:
        Factors, shape [sites, width], and True for what must not be multiplied by them, shape
        [sites, width, 1], where there is any.
    """
    # In units of the site's own norm.
    factors = clip_factors(squared / clipping_norms.unsqueeze(1).square(), 1.0)
    unusable = factors == 0.0
    factors = factors * (scales.unsqueeze(1) if counted is None else scales.unsqueeze(1) * counted)
    return factors, unusable.unsqueeze(2) if bool(unusable.any()) else None
