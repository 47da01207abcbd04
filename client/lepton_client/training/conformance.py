"""One batch of made-up records, by our engine and by Opacus, before any real one is touched.

Where the two differ, Opacus' gradients are used and the run's evidence says so. The records are
random numbers, so the outcome says nothing about anybody's data.
"""

from dataclasses import dataclass

import torch

from lepton_client.training.bookkeeping import ClippedGradients
from lepton_client.training.opacus_gradients import OpacusGradients
from lepton_client.training.resident import ResidentModel
from lepton_common.tasks.catalog import Task

OURS, OPACUS = "book-keeping", "opacus"
_RECORDS, _SEED = 8, 20261121
_NORMS = (1.0, 0.01)  # one that clips few of the made-up records, and one that clips all
_LARGEST_DIFFERENCE = 1e-4  # of the sum's norm; float32 kernels differ by about 1e-7


@dataclass(frozen=True)
class Conformance:
    """Which engine a model trains with, and why.

    Attributes:
        engine: ``book-keeping``, or ``opacus`` where the two differ.
        difference: relative L2 distance of the two sums; None where ours could not be computed.
    """

    engine: str
    difference: float | None

    def open(self, model: ResidentModel) -> ClippedGradients | OpacusGradients:
        """Returns the engine on a model, to be entered."""
        kind = ClippedGradients if self.engine == OURS else OpacusGradients
        return kind(model.module)


def conform(
    model: ResidentModel, task: Task, input_shape: tuple[int, ...], classes: int
) -> Conformance:
    """Returns the engine for a model, which is compared once in its life, at weights of our own.

    At a server's weights it would be the server that chooses.
    """
    if model.conformance is None:
        kept = [parameter.detach().clone() for parameter in model.module.parameters()]
        generator = torch.Generator().manual_seed(_SEED)
        with torch.no_grad():
            for parameter in model.module.parameters():
                width = max(1, parameter[0].numel()) if parameter.dim() > 1 else 1
                drawn = torch.randn(parameter.shape, generator=generator) / width**0.5
                parameter.copy_(drawn if parameter.dim() > 1 else 1.0 + 0.1 * drawn)
        try:
            model.conformance = _compare(model, task, input_shape, classes)
        finally:
            with torch.no_grad():
                for parameter, values in zip(model.module.parameters(), kept, strict=True):
                    parameter.copy_(values)
    found: Conformance = model.conformance
    return found


def _compare(
    model: ResidentModel, task: Task, input_shape: tuple[int, ...], classes: int
) -> Conformance:
    generator = torch.Generator().manual_seed(_SEED)
    features = torch.randn(_RECORDS, *input_shape, generator=generator).to(model.device)
    labels = torch.randint(0, classes, (_RECORDS,), generator=generator).to(model.device)
    unit_of_row = torch.arange(_RECORDS, device=model.device) // 2
    furthest = 0.0
    for clipping_norm in _NORMS:
        sums = []
        for kind in (OpacusGradients, ClippedGradients):
            try:
                with kind(model.module) as engine:
                    sums.append(
                        engine.sum(task.losses, features, labels, clipping_norm=clipping_norm,
                                   unit_of_row=unit_of_row, units=_RECORDS // 2)
                    )  # fmt: skip
            except Exception:
                if kind is OpacusGradients:
                    raise
                return Conformance(OPACUS, None)
        theirs, ours = sums
        length = float(theirs.norm())
        if length == 0.0:  # two zeros that agree show nothing
            return Conformance(OPACUS, None)
        furthest = max(furthest, float((ours - theirs).norm()) / length)
    return Conformance(OURS if furthest <= _LARGEST_DIFFERENCE else OPACUS, furthest)
