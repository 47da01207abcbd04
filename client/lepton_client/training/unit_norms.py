"""Norms of units' gradients over all layers, and the clip factors that they give."""

import torch

from lepton_client.training.layer_norms import Form, precision_on, square_sums

# A float32 clip factor below this would be rounded coarsely; its unit counts as not finite.
_LEAST_FACTOR = 1e-30
# What is summed of one unit, row by row and use by use, is together no longer than so many
# clipping norms.
_TOGETHER = 64.0
# Gradients of units, where they must be written out, are so many bytes at a time.
_UNIT_BYTES = 1 << 24


def weigh(
    forms: list[Form],
    clipping_norm: float,
    unit_of_row: torch.Tensor | None,
    units: int,
    mask: torch.Tensor | None,
) -> tuple[list[Form], torch.Tensor]:
    """Returns forms and each of their rows' clip factor, in float64 where there is.

    Rows that do not count are either left out of the forms, or finite with a factor of zero:
    zero times a value that is not finite would reach the other records.
    """
    if unit_of_row is None:
        factors = _factors_of_rows(forms, clipping_norm)
        usable = factors > 0.0
        if mask is not None:
            factors = torch.where(mask, factors, 0.0)
        return _keep(forms, factors, usable)
    if mask is not None and not bool(mask.all()):
        kept = mask.nonzero().squeeze(1)
        forms, unit_of_row = [form.select(kept) for form in forms], unit_of_row[kept]
    if bool((torch.bincount(unit_of_row, minlength=units) <= 1).all()):
        factors = _factors_of_rows(forms, clipping_norm)
    else:
        squared = squared_norms_of_units(forms, unit_of_row, units)
        lengths = torch.zeros_like(squared).index_add_(0, unit_of_row, _lengths_of_rows(forms))
        factors = _factors(squared, lengths, clipping_norm)[unit_of_row]
    return _keep(forms, factors, factors > 0.0)


def _factors_of_rows(forms: list[Form], clipping_norm: float) -> torch.Tensor:
    squared = squared_norms_of_rows(forms)
    if _split(forms)[1]:
        return _factors(squared, _lengths_of_rows(forms), clipping_norm)
    return clip_factors(squared, clipping_norm)


def _factors(squared: torch.Tensor, lengths: torch.Tensor, clipping_norm: float) -> torch.Tensor:
    """Returns clip factors, smaller ones where what is summed nearly cancels.

    Its rounding would drown the other units'.
    """
    together = clip_factors(lengths.square(), _TOGETHER * clipping_norm)
    return torch.minimum(clip_factors(squared, clipping_norm), together)


def _lengths_of_rows(forms: list[Form]) -> torch.Tensor:
    """Returns the norms of each row's parts that are summed one by one, added up, shape [rows]."""
    alone, shared = _split(forms)
    parts = [squared_norms_of_rows(alone)] if alone else []
    parts += [form.squared_norms() for form in shared]
    return torch.stack(parts).sqrt().sum(0)


def clip_factors(squared_norms: torch.Tensor, clipping_norm: float) -> torch.Tensor:
    """Returns the factor that brings each norm to at most ``clipping_norm``; 0 if not finite."""
    norms = squared_norms.sqrt()
    usable = torch.isfinite(norms) & (norms * _LEAST_FACTOR <= clipping_norm)
    tiny = torch.finfo(norms.dtype).tiny
    return torch.where(usable, (clipping_norm / norms.clamp(min=tiny)).clamp(max=1.0), 0.0)


def squared_norms_of_rows(forms: list[Form]) -> torch.Tensor:
    """Returns each row's squared norm over all forms, shape [rows]."""
    alone, shared = _split(forms)
    total = torch.stack([form.squared_norms() for form in alone]).sum(0) if alone else 0.0
    if shared:
        rows = torch.arange(shared[0].rows, device=shared[0].device)
        total = total + _instantiated(shared, rows, len(rows))
    assert isinstance(total, torch.Tensor)
    return total


def squared_norms_of_units(
    forms: list[Form], unit_of_row: torch.Tensor, units: int
) -> torch.Tensor:
    """Returns the squared norm of each unit's sum over its rows, shape [units]."""
    alone, shared = _split(forms)
    total = torch.zeros(units, dtype=precision_on(forms[0].device), device=forms[0].device)
    for group in [*([form] for form in alone), *([shared] if shared else [])]:
        squared = group[0].squared_norms_of_units(unit_of_row, units) if len(group) == 1 else None
        total += _instantiated(group, unit_of_row, units) if squared is None else squared
    return total


def _split(forms: list[Form]) -> tuple[list[Form], list[Form]]:
    """Returns the forms whose parameters are theirs alone, and those that share some."""
    uses: dict[int, int] = {}
    for form in forms:
        for parameter in form.parameters:
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    alone = [form for form in forms if all(uses[id(p)] == 1 for p in form.parameters)]
    return alone, [form for form in forms if not any(form is one for one in alone)]


def _instantiated(forms: list[Form], unit_of_row: torch.Tensor, units: int) -> torch.Tensor:
    """Writes the units' gradients out, some units at a time: sums over rows and forms first.

    As exactly as they will be summed: in float32, a unit's 1,024 rows came out shorter than they
    are by 0.2 %.
    """
    # Several forms of one parameter add up before the norm is taken.
    parameters = {id(p): p for form in forms for p in form.parameters}
    size = sum(parameter.numel() for parameter in parameters.values())
    device, precision = forms[0].device, precision_on(forms[0].device)
    order = torch.argsort(unit_of_row, stable=True)
    counts = torch.bincount(unit_of_row, minlength=units)
    ends = [0, *counts.cumsum(0).tolist()]
    total = torch.zeros(units, dtype=precision, device=device)
    step = max(1, _UNIT_BYTES // (size * precision.itemsize))
    for first in range(0, units, step):
        last = min(first + step, units)
        sums = {
            key: torch.zeros(last - first, parameter.numel(), dtype=precision, device=device)
            for key, parameter in parameters.items()
        }
        rows = order[ends[first] : ends[last]]
        for form in forms:
            for piece, parts in form.select(rows).in_pieces():
                place = unit_of_row[rows[piece]] - first
                for parameter, part in zip(form.parameters, parts, strict=True):
                    sums[id(parameter)].index_add_(0, place, part.to(precision))
        for values in sums.values():
            total[first:last] += square_sums(values)
    return total


def _keep(
    forms: list[Form], factors: torch.Tensor, usable: torch.Tensor
) -> tuple[list[Form], torch.Tensor]:
    if bool(usable.all()):
        return forms, factors
    kept = usable.nonzero().squeeze(1)
    return [form.select(kept) for form in forms], factors[kept]
