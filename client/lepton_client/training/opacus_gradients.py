"""The sum of clipped gradients by Opacus' hooks: the reference, and what is fallen back on.

Opacus computes the gradient of each record and nothing else: sampling, clipping, noise and the
denominator are read from the plan, because Opacus' own noise follows ``torch.manual_seed``, its
samplers and denominators depend on the private number of records, and its accountant forgets
across rounds.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import nn

from lepton_client.training import alignment
from lepton_client.training.bookkeeping import Losses
from lepton_client.training.layer_norms import precision_on
from lepton_client.training.written_out import WrittenOut
from lepton_common.arrays import trained

# Opacus registers its hooks on modules whose input needs no gradient, as a first layer's.
warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)


class OpacusGradients(WrittenOut):
    """Opacus' hooks on a model, from `__enter__` until `__exit__`, whatever happens between.

    Fresh hooks for each request: what an aborted step left in them cannot reach the next.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._hooked: Any = None
        self._aligned: list[nn.Module] = []

    def __enter__(self) -> Self:
        # Imported here: it takes seconds, and training without privacy needs none of it.
        from opacus.grad_sample import GradSampleModule

        self._hooked = GradSampleModule(self._module, loss_reduction="sum", strict=True)
        self._aligned = alignment.align(self._module)
        return self

    def __exit__(self, *_: object) -> None:
        alignment.restore(self._aligned)
        self._hooked.to_standard_module()
        # An aborted step leaves these behind, and Opacus would go on from there.
        for layer in self._module.modules():
            for name in ("activations", "max_batch_len"):
                vars(layer).pop(name, None)
        for parameter in self._module.parameters():
            for name in ("_current_grad_sample", "grad_sample"):
                vars(parameter).pop(name, None)
            parameter.grad = None

    def each_row(
        self, losses: Losses, features: torch.Tensor, labels: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yields all that `sum` uses of each row, by name, records first; for `likeness`."""
        gradients = self._record_gradients(losses, features, labels)
        yield "gradient", gradients
        precision = precision_on(features.device)
        yield "norm", torch.linalg.vector_norm(gradients, dim=1, dtype=precision)

    def _record_gradients(
        self, losses: Losses, features: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """Returns each record's gradient of its own loss, shape [rows, d]."""
        torch.autograd.backward(losses(self._hooked(features), labels).sum())
        pieces: list[torch.Tensor] = []
        for parameter in trained(self._module):
            # Opacus leaves per-record gradients as an attribute, and adds to them if they stay.
            per_record: torch.Tensor = vars(parameter)["grad_sample"]
            pieces.append(per_record.flatten(1))
            vars(parameter)["grad_sample"] = parameter.grad = None
        return torch.cat(pieces, dim=1)
