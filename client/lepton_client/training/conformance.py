"""One batch of made-up records, by our engine and by Opacus, before any real one is touched.

Where the two differ, Opacus' gradients are used and the run's evidence says so. Of recurrent
layers and attention Opacus has none; there ours must agree with each record's by itself, or the
model is refused. The records are random numbers, so the outcome says nothing about anybody's data.
Nor does that of `likeness`, by which a model works in float64 wherever float32 would not compute
all rows alike, and on one person at a time where float64 would not either.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd

from lepton_client.training.bookkeeping import ClippedGradients
from lepton_client.training.likeness import (
    FINE,
    SMALLEST,
    Kind,
    ordinary_weights,
    own_weights,
    rows_alike,
)
from lepton_client.training.opacus_gradients import OpacusGradients
from lepton_client.training.resident import ResidentModel
from lepton_client.training.written_out import EachAlone, WrittenOut
from lepton_common.errors import (
    BuffersNotAllowed,
    GradientsUnavailable,
    LossNotApart,
    PrecisionUnavailable,
)
from lepton_common.models.tokens import spread
from lepton_common.tasks.catalog import Task

_LOG = logging.getLogger("lepton.trainer")
OURS, OPACUS = "book-keeping", "opacus"
SINGLE, DOUBLE = "float32", "float64"
_RECORDS, _SEED = 8, 20261121
_NORMS = (1.0, 0.01)  # one that clips few of the made-up records, and one that clips all
_WILD = (float("nan"), 1e30)  # that records may hold
_MIXES = (
    "What this model says of one record depends on the others in its batch, so that no clipping "
    "bounds what one of them changes; mend the model."
)
_LARGEST_DIFFERENCE = 1e-4  # of the sum's norm; float32 kernels differ by about 1e-7


@dataclass(frozen=True)
class Conformance:
    """Which engine a model trains with, and why.

    Attributes:
        engine: ``book-keeping``, or ``opacus`` where the two differ.
        difference: relative L2 distance of our sums from the reference's; None where ours could
            not be computed.
        precision: ``float32``, or ``float64`` where a row's place in a batch would tell otherwise.
        together: whether people share a batch; not where their places would tell in float64 too.
        step: batches of up to 64 rows are filled up to a multiple of this: 16, or 64 where smaller
            ones are not computed as the others are.
    """

    engine: str
    difference: float | None
    precision: str = SINGLE
    together: bool = True
    step: int = FINE

    @property
    def kind(self) -> Kind:
        """The engine's class."""
        return ClippedGradients if self.engine == OURS else OpacusGradients

    def open(self, model: ResidentModel) -> ClippedGradients | OpacusGradients:
        """Returns the engine on a model, to be entered."""
        return self.kind(model.module)


def conform(
    model: ResidentModel,
    task: Task,
    input_shape: tuple[int, ...],
    classes: int,
    heights: tuple[int, ...],
) -> Conformance:
    """Returns the engine for a model, which is compared once in its life, at weights of our own.

    At a server's weights it would be the server that chooses. So that no record chooses either,
    all heights that a batch may have are tried before the first one is used. A model that does not
    compute all rows alike is turned into float64, and stays so. That alone would be no mend: what
    is left of the difference, a deep network magnifies as far as one likes.

    Args:
        model: the model.
        task: whose losses count.
        input_shape: of one record.
        classes: how many values a label has, if it is a class or tokens.
        heights: see `lepton_client.training.private.heights`.

    Raises:
        LossNotApart: a record's loss depends on others.
        PrecisionUnavailable: the device has no float64.
        BuffersNotAllowed: what the model says of one record depends on others.
        GradientsUnavailable: no engine computes its records' gradients.
    """
    if not task.objective.apart:
        raise LossNotApart(
            f"The loss of '{task.name}' compares records with one another, so that no clipping "
            "bounds what one of them changes; use a task whose loss is each record's own."
        )
    # As in training: an evaluation, or whoever built it, may have left it in the other mode.
    model.module.train()
    if model.conformance is None:
        with own_weights(model.module):
            ordinary_weights(model.module)
            _check_apart(model, input_shape)
            model.conformance = _compare(model, task, input_shape, classes)
    found: Conformance = model.conformance
    if found.step == FINE and not _proven(model, found, task, input_shape, heights):
        found = replace(found, step=SMALLEST)
    if found.step != FINE:
        heights = tuple(height for height in heights if height % SMALLEST == 0)
    if found.precision == SINGLE and not _proven(model, found, task, input_shape, heights):
        if model.device.type == "mps":
            raise PrecisionUnavailable(
                "This device does not compute all rows of a batch alike, and has no float64 to "
                "make up for it; train on the CPU."
            )
        model.module.double()
        model.proven.clear()
        found = replace(found, precision=DOUBLE)
    if found.precision == DOUBLE and found.together:
        found = replace(found, together=_proven(model, found, task, input_shape, heights))
    model.conformance = found
    return found


@torch.no_grad()
def check_forgets(model: ResidentModel, input_shape: tuple[int, ...]) -> None:
    """Checks that an evaluated model says the same of a record whatever it was shown before.

    People go through it one after another, and one that goes on from where the last batch ended,
    as a recurrent one may, would have each person move the figures of all behind them. One that
    keeps statistics while it trains would have those it was trained on move all figures.

    Args:
        model: the model; its weights and mode are put back.
        input_shape: of one record.

    Raises:
        BuffersNotAllowed: it remembers records.
    """
    generator = torch.Generator().manual_seed(_SEED)
    records = torch.randn(_RECORDS, *input_shape, generator=generator)
    records = spread(model.module, records).to(next(model.module.parameters()))
    wild = [torch.full_like(records[:1], value) for value in _WILD]
    trains = model.module.training
    with own_weights(model.module):
        ordinary_weights(model.module)
        model.module.eval()
        try:
            first = model.module(records[:1])
            for before in (records[1:2], *wild, records[2:4], records[4:5]):
                model.module(before)
                model.module.train()(before)
                model.module.eval()
                if not torch.equal(model.module(records[:1]), first):
                    raise BuffersNotAllowed(
                        "What this model says of a record depends on those that it was shown "
                        "before, so that nothing bounds what one of them changes; mend the model."
                    )
        finally:
            model.module.train(trains)


def _proven(
    model: ResidentModel,
    found: Conformance,
    task: Task,
    input_shape: tuple[int, ...],
    heights: tuple[int, ...],
) -> bool:
    threads = torch.get_num_threads()
    keys = {height: (found.engine, threads, height) for height in heights}
    new = [height for height, key in keys.items() if key not in model.proven]
    if new:
        _check_undisturbed(model, input_shape, max(new))
    if new and not rows_alike(model, found.kind, task, input_shape, new):
        return False
    model.proven.update(keys.values())
    return True


@torch.no_grad()
def _check_apart(model: ResidentModel, input_shape: tuple[int, ...]) -> None:
    """Checks that records do not mix, which both engines take for granted.

    Layers are known; what a model from a package does between them is not.
    """
    generator = torch.Generator().manual_seed(_SEED)
    features = torch.randn(_RECORDS, *input_shape, generator=generator)
    features = spread(model.module, features).to(model.device)
    with _without_chance(model.module):
        together = model.module(features)
        # Beside itself: some layers take no batch of one.
        pairs = (record.expand(2, *input_shape) for record in features)
        alone = torch.cat([model.module(pair)[:1] for pair in pairs])
    largest = float(alone.abs().max())
    if not torch.allclose(alone, together, rtol=0.0, atol=_LARGEST_DIFFERENCE * largest):
        raise BuffersNotAllowed(_MIXES)


@torch.no_grad()
def _check_undisturbed(model: ResidentModel, input_shape: tuple[int, ...], rows: int) -> None:
    """Checks the same in a large batch, half of which are no numbers or very large ones.

    They show what is mixed by a share too small to be seen, or only where numbers are large.
    """
    generator = torch.Generator().manual_seed(_SEED)
    records = torch.rand(rows, *input_shape, generator=generator)
    records = spread(model.module, records).to(next(model.module.parameters()))
    wild = torch.rand(rows, generator=generator).to(records.device) < 0.5
    with own_weights(model.module):
        ordinary_weights(model.module)
        with _without_chance(model.module):
            plain = model.module(records)[~wild]
            for value in _WILD:
                records[wild] = value
                beside = model.module(records)[~wild]
                largest = float(plain.abs().max())
                if not torch.allclose(plain, beside, rtol=0.0, atol=_LARGEST_DIFFERENCE * largest):
                    raise BuffersNotAllowed(_MIXES)


@contextmanager
def _without_chance(module: nn.Module) -> Iterator[None]:
    chance = [m for m in module.modules() if isinstance(m, _DropoutNd) and m.training]
    for layer in chance:
        layer.eval()
    try:
        yield
    finally:
        for layer in chance:
            layer.train()


def _compare(
    model: ResidentModel, task: Task, input_shape: tuple[int, ...], classes: int
) -> Conformance:
    """Holds our sums against Opacus', or where it has none, against each record's by itself.

    Whatever fails here fails of made-up records, so that the site's log may tell it.
    """
    generator = torch.Generator().manual_seed(_SEED)
    features = torch.randn(_RECORDS, *input_shape, generator=generator)
    features = spread(model.module, features).to(model.device)
    labels = task.objective.made_up_labels(_RECORDS, classes, input_shape, generator)
    labels = labels.to(model.device)
    unit_of_row = torch.arange(_RECORDS, device=model.device) // 2

    def sums(kind: type[WrittenOut | ClippedGradients]) -> list[torch.Tensor]:
        with kind(model.module) as engine:
            return [
                engine.sum(task.losses, features, labels, clipping_norm=clipping_norm,
                           unit_of_row=unit_of_row, units=_RECORDS // 2)
                for clipping_norm in _NORMS
            ]  # fmt: skip

    theirs = None
    try:
        theirs = sums(OpacusGradients)
    except Exception as error:
        _LOG.info("Opacus has no gradients of this model (%s).", type(error).__name__)
    try:
        difference = _furthest(sums(ClippedGradients), theirs or sums(EachAlone))
    except Exception:
        _LOG.warning("Our own engine's gradients could not be compared.", exc_info=True)
        difference = None
    if difference is not None and difference <= _LARGEST_DIFFERENCE:
        return Conformance(OURS, difference)
    if theirs is not None:
        return Conformance(OPACUS, difference)
    raise GradientsUnavailable(
        "Neither our engine nor Opacus computes this model's gradients record by record; build it "
        "from PyTorch's own layers, with records first."
    )


def _furthest(ours: list[torch.Tensor], theirs: list[torch.Tensor]) -> float | None:
    """Returns the largest relative distance; None of zeros, which agree and show nothing."""
    lengths = [float(sum_.norm()) for sum_ in theirs]
    if not all(lengths):
        return None
    pairs = zip(ours, theirs, lengths, strict=True)
    return max(float((one - other).norm()) / length for one, other, length in pairs)
