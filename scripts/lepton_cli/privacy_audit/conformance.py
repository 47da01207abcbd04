"""Whether DP-SGD does at made-up records what its plan says: clipping, edge cases, left-overs.

Noise and sampling are in `randomness`. Everything here goes through the functions that train at
a real site, with both engines that a site may use.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from lepton_cli.privacy_audit.canaries import CPU, plain_recipe, resident
from lepton_cli.privacy_audit.checks import Check
from lepton_cli.privacy_audit.made_up import (
    CLASSES,
    RECORDS,
    TASK,
    hostile_records,
    make_model,
    make_models,
    make_records,
    opened,
    shape_for,
    singles,
    weights_of,
)
from lepton_client.training.conformance import OPACUS, OURS, Conformance
from lepton_client.training.private import train_private
from lepton_client.training.resident import ResidentModel
from lepton_client.training.views import Views
from lepton_common.arrays import Layout
from lepton_common.datasets.records import Rows
from lepton_common.errors import BuffersNotAllowed
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.augmentation import OfImages

_ROUNDING = 1e-5  # of the clipping norm, for float32
_QUIET = 1e-9  # a noise multiplier next to nothing
_ENGINES = (OURS, OPACUS)
_Models = list[tuple[str, ResidentModel]]


def audit_conformance(
    plan: PrivacyPlan,
    device: torch.device = CPU,
    advance: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Returns checks of everything but chance, under a plan's clipping norm."""
    checks = []
    models = make_models(device)
    for engine in _ENGINES:
        kinds = (_sensitivity, _influence, _edges, _augmented)
        checks += [check(plan, engine, models) for check in kinds]
        advance()
    return [
        *checks,
        _alone(plan, device),
        _buffers(plan, device),
        _refused(),
        _leftovers(plan, models),
    ]


def _sensitivity(plan: PrivacyPlan, engine: str, models: _Models) -> Check:
    """Leaves every unit out of sums of ordinary and of hostile records."""
    worst, where = 0.0, ""
    for name, model in models:
        with opened(model, plan, engine) as summed:
            for kind, records in hostile_records(name):
                owners = np.arange(len(records)) if records.units is None else records.units
                units = [np.flatnonzero(owners == unit) for unit in np.unique(owners)]
                whole = summed(records, units)
                for left_out in range(len(units)):
                    moved = _norm(whole - summed(records, _without(units, left_out)))
                    if moved > worst:
                        worst, where = moved, f"{name}, {kind}"
    worst /= plan.clipping_norm
    return Check(
        f"sensitivity, {engine}: one unit more or less",
        worst <= 1 + _ROUNDING,
        f"at most {worst:.7f} clipping norms ({where})",
        f"at most 1 + {_ROUNDING:g}",
    )


def _influence(plan: PrivacyPlan, engine: str, models: _Models) -> Check:
    """Adds a record that clips, beside one that is not finite: the sum must be the first alone."""
    found = []
    for name, model in models:
        records = make_records(name, 2)
        features = records.features.clone()
        features[0] *= 50.0
        with opened(model, plan, engine) as summed:
            alone = summed(replace(records, features=features), singles(1))
            for value in (float("nan"), float("inf")):
                features[1] = value
                both = summed(replace(records, features=features), singles(2))
                found.append(_norm(both - alone) / plan.clipping_norm)
    worst = max(found)
    return Check(
        f"not finite, {engine}: such a record counts as zero",
        worst <= _ROUNDING,
        f"others' sum moved by {worst:.1g} clipping norms",
        "0",
    )


def _edges(plan: PrivacyPlan, engine: str, models: _Models) -> Check:
    """An empty batch, and one of nothing but NaN, sum to exactly zero."""
    worst = 0.0
    for name, model in models:
        records = make_records(name, 3)
        nothing = replace(records, features=torch.full_like(records.features, float("nan")))
        with opened(model, plan, engine) as summed:
            worst = max(worst, _norm(summed(records, [])), _norm(summed(nothing, singles(3))))
    return Check(
        f"empty and NaN batches, {engine}: the sum is zero",
        worst == 0.0,
        f"norm {worst:.1g}",
        "0",
    )


def _augmented(plan: PrivacyPlan, engine: str, models: _Models) -> Check:
    """Takes three views of each picture: alike they change nothing, unlike they are one record."""
    moved = longest = 0.0
    recipe = replace(plain_recipe(1.0), augmentations=3)
    for name, model in models:
        if len(shape_for(name)) < 3:
            continue
        records, units = make_records(name, 4), singles(4)
        alike = Views(TASK, recipe, SecretRandom())
        unlike = Views(replace(TASK, augmentation=OfImages(2, mirror=True)), recipe, SecretRandom())
        with opened(model, plan, engine) as summed:
            moved = max(moved, _norm(summed(records, units, alike) - summed(records, units)))
            for unit in units:
                longest = max(longest, _norm(summed(records, [unit], unlike)))
    moved, longest = moved / plan.clipping_norm, longest / plan.clipping_norm
    return Check(
        f"views, {engine}: those of one record are clipped as one",
        moved <= 4 * _ROUNDING and longest <= 1 + _ROUNDING,
        f"at most {longest:.7f} clipping norms; equal views move the sum by {moved:.1g}",
        f"at most 1 + {_ROUNDING:g}; 0",
    )


def _alone(plan: PrivacyPlan, device: torch.device) -> Check:
    """A site of one record, in every step: its update is its clipped gradient and no more."""
    quiet = replace(plan, noise_multiplier=_QUIET, sample_rate=1.0, steps_per_round=1, shared=None)
    model, records = make_model("mlp", device), make_records("mlp", 1)
    start = weights_of(model)
    rate = 1e-3 * plan.denominator / plan.clipping_norm
    update = train_private(model, TASK, records, start, plain_recipe(rate), quiet,
                           Conformance(OURS, 0.0))  # fmt: skip
    with opened(model, quiet, OURS) as summed:
        gradient = summed(records, singles(1)).cpu().numpy() / plan.clipping_norm
    difference = float(np.linalg.norm(update / 1e-3 + gradient))
    return Check(
        "one record at a rate of 1: its clipped gradient",
        difference <= 1e-3,
        f"update off by {difference:.1g} clipping norms",
        "at most 0.001 (float32 weights)",
    )


def _buffers(plan: PrivacyPlan, device: torch.device) -> Check:
    """A step leaves a model's buffers bit for bit as they were."""
    module = _WithBuffer().to(device)
    model = ResidentModel(module, _parameters_only(module), device)
    before = {name: value.clone() for name, value in module.named_buffers()}
    start = weights_of(model)
    once = replace(plan, steps_per_round=1, sample_rate=1.0, shared=None)
    changed = set()
    for engine in _ENGINES:
        train_private(model, TASK, make_records("mlp", RECORDS), start, plain_recipe(0.01), once,
                      Conformance(engine, 0.0))  # fmt: skip
        after = dict(module.named_buffers())
        changed |= {name for name in before.keys() | after.keys()
                    if not torch.equal(before[name], after[name])}  # fmt: skip
    return Check("buffers: unchanged by a step", not changed, f"{len(changed)} changed", "0")


def _refused() -> Check:
    """Layers that mix records, or keep statistics of them, are refused by layout and hooks."""
    slipped = []
    for layer in (nn.BatchNorm1d(5), nn.BatchNorm1d(5, track_running_stats=False)):
        module = nn.Sequential(nn.Linear(5, 5), layer, nn.Linear(5, CLASSES))
        try:
            if layer.track_running_stats:
                Layout.of(module)
            else:
                with Conformance(OURS, 0.0).open(resident(module)) as hooks:
                    hooks.sum(TASK.losses, torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64),
                              clipping_norm=1.0)  # fmt: skip
            slipped.append(layer)
        except BuffersNotAllowed:
            continue
        except ValueError:  # too late: it has mixed them
            slipped.append(layer)
    return Check(
        "layers that mix records: refused", not slipped, f"{len(slipped)} of 2 let through", "0"
    )


def _leftovers(plan: PrivacyPlan, models: _Models) -> Check:
    """After a step nothing of the records is left on the model: no hooks, no gradients of each."""
    once = replace(plan, steps_per_round=1, sample_rate=1.0, shared=None)
    left = 0
    for engine in _ENGINES:
        for name, model in models:
            start = weights_of(model)
            train_private(model, TASK, make_records(name, 2), start, plain_recipe(0.01), once,
                          Conformance(engine, 0.0))  # fmt: skip
            left += sum(len(layer._forward_hooks) for layer in model.module.modules())
            left += sum(
                vars(parameter).get("grad_sample") is not None
                for parameter in model.module.parameters()
            )
    return Check("left-overs: hooks and records' gradients are gone", left == 0, f"{left}", "0")


def _without(units: list[Rows], left_out: int) -> list[Rows]:
    return units[:left_out] + units[left_out + 1 :]


def _norm(values: torch.Tensor) -> float:
    """Returns the L2 norm; infinity where a value is not finite."""
    return float(values.norm().nan_to_num(nan=float("inf")))


class _WithBuffer(nn.Module):
    """A small model with a constant and a count that no training may touch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, CLASSES)
        self.scale: torch.Tensor
        self.register_buffer("scale", torch.full((5,), 2.0))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape [rows, classes]."""
        logits: torch.Tensor = self.layer(features * self.scale)
        return logits


def _parameters_only(module: nn.Module) -> Layout:
    """Returns a layout past the refusal of buffers, which is checked on its own."""
    named = list(module.named_parameters())
    return Layout(tuple(name for name, _ in named), tuple(tuple(p.shape) for _, p in named))
