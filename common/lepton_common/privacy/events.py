"""The mechanisms that a privacy ledger can hold: what each is, how it is logged and read back.

An event says everything that accounting needs and nothing about the data. All bounds hold under
the add-or-remove-one relation: sensitivities are of the sum to one privacy unit more or less.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np

from lepton_common.errors import PlanError

# What a mechanism may be charged with. Outside, it gives no guarantee worth the name, or the
# accountants' floating-point arithmetic has not been tested.
_BOUNDS: dict[str, tuple[float, float]] = {
    "sample_rate": (1e-9, 1.0),
    "noise_multiplier": (0.01, 1e9),
    "steps": (1, 10**7),
    "count": (1, 10**7),
    "l2_sensitivity": (1.0, 1e12),  # an integer vector other than 0 has a norm of 1 or more
    "l1_sensitivity": (1.0, 1e18),
    "dimension": (1, 10**10),
    "variance": (2.0**-8, 2.0**60),
    "scale_over_sensitivity": (0.01, 1e6),
}


@dataclass(frozen=True)
class _Named:
    """An event within the bounds of what can be accounted for, whose record names its kind.

    Raises:
        PlanError: a value is out of bounds.
    """

    kind: ClassVar[str]

    def __post_init__(self) -> None:
        """Refuses what gives no guarantee."""
        _check(self)

    def record(self) -> dict[str, float | int | str]:
        """Returns the event as plain values, for logs and messages."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class SampledGaussian:
    """Some steps of the Poisson-sampled Gaussian mechanism (Mironov et al. 2019).

    Attributes:
        sample_rate: probability that a privacy unit takes part in a step, in (0, 1].
        noise_multiplier: standard deviation of the noise over the clipping norm.
        steps: how many such steps.
    """

    kind: ClassVar = "sampled_gaussian"
    sample_rate: float
    noise_multiplier: float
    steps: int

    def record(self) -> dict[str, float | int]:
        """Returns the event as plain values, for logs and messages.

        It names no kind: audit logs hold such records, signed, from before there were others,
        and `read_event` takes what names no kind for one.
        """
        return asdict(self)


@dataclass(frozen=True)
class Skellam(_Named):
    """Some integer-valued sums with Skellam noise (Agarwal, Kairouz and Liu, NeurIPS 2021).

    Attributes:
        sample_rate: Poisson rate of the privacy units in a sum, in (0, 1]; 1: no sampling.
        l2_sensitivity: Euclidean norm of what one unit changes, in steps of the integer grid.
        l1_sensitivity: sum of the absolute changes, in steps of the integer grid.
        variance: of the whole noise on each coordinate, in squared steps: the difference of two
            Poisson variables of mean variance/2 each. Of several sites, the noise that is certain.
        steps: how many such sums.

    Raises:
        PlanError: a value is out of bounds.
    """

    kind: ClassVar = "skellam"
    sample_rate: float
    l2_sensitivity: float
    l1_sensitivity: float
    variance: float
    steps: int


@dataclass(frozen=True)
class RoundedSkellam(_Named):
    """Some sums of real vectors, rounded with a dither, with Skellam noise.

    What DP-SGD over a union of sites releases: each site rounds its sum of clipped gradients to
    the grid, up or down at random, and adds noise; the bound on what rounding adds to a unit's
    influence is in `skellam.rounded_skellam_divergence`.

    Attributes:
        sample_rate: Poisson rate of the privacy units in a sum, in (0, 1]; 1: no sampling.
        l2_sensitivity: norm of what one unit changes before rounding, in steps of the grid.
        dimension: number of values that are rounded.
        variance: of the whole noise on each coordinate, in squared steps, as `Skellam.variance`.
        steps: how many such sums.

    Raises:
        PlanError: a value is out of bounds.
    """

    kind: ClassVar = "rounded_skellam"
    sample_rate: float
    l2_sensitivity: float
    dimension: int
    variance: float
    steps: int


@dataclass(frozen=True)
class DiscreteGaussian(_Named):
    """Some integer-valued sums with discrete Gaussian noise (Canonne, Kamath and Steinke, 2020).

    Of one draw: a sum of several draws is not discrete Gaussian, and must not be charged as one.

    Attributes:
        l2_sensitivity: Euclidean norm of what one unit changes, in steps of the integer grid.
        variance: the parameter scale² of P(k) ~ exp(-k²/(2 scale²)), in squared steps; the law's
            own variance is slightly less.
        steps: how many such sums.

    Raises:
        PlanError: a value is out of bounds.
    """

    kind: ClassVar = "discrete_gaussian"
    l2_sensitivity: float
    variance: float
    steps: int


@dataclass(frozen=True)
class Laplace(_Named):
    """Some counts with Laplace or discrete Laplace noise of scale b, for b a sensitivity.

    Each is purely (1/b)-differentially private. The discrete law on a count loses exactly 1/b or
    -1/b, as randomised response does, which is the most that any such mechanism can; the
    continuous law loses less. Both are charged as the discrete one.

    Attributes:
        scale_over_sensitivity: b.
        count: how many such counts.

    Raises:
        PlanError: a value is out of bounds.
    """

    kind: ClassVar = "laplace"
    scale_over_sensitivity: float
    count: int

    @property
    def steps(self) -> int:
        """How many counts, under the name that other events have for it."""
        return self.count


Event = SampledGaussian | Skellam | RoundedSkellam | DiscreteGaussian | Laplace

_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (SampledGaussian, Skellam, RoundedSkellam, DiscreteGaussian, Laplace)
}
_COUNTS = ("steps", "count")
_WHOLE = (*_COUNTS, "dimension")
_NOISE = ("noise_multiplier", "variance", "scale_over_sensitivity")  # the more, the better


def read_event(values: Mapping[str, object]) -> Event:
    """Returns the event that ``record()`` wrote.

    Args:
        values: as parsed from JSON. Without a ``kind`` it is a sampled Gaussian.

    Raises:
        PlanError: the kind or a field is unknown or missing, or a value is not a finite number
            within its bounds.
    """
    given = dict(values)
    name = given.pop("kind", SampledGaussian.kind)
    kind = _KINDS.get(name) if isinstance(name, str) else None
    if kind is None:
        raise PlanError(
            f"{name!r} is not a kind of event that this version can account for; "
            f"it knows {', '.join(_KINDS)}."
        )
    expected = [field.name for field in fields(kind)]
    if set(given) != set(expected):
        odd = ", ".join(sorted(map(str, set(given) ^ set(expected))))
        raise PlanError(f"An event '{name}' has the fields {', '.join(expected)}; check {odd}.")
    numbers: dict[str, Any] = {field: _number(field, given[field]) for field in expected}
    event = kind(**numbers)
    _check(event)
    return event


def merge(events: Sequence[Event]) -> list[Event]:
    """Returns the events with like ones as one, in an order of their own; none without steps."""
    steps: dict[Event, int] = {}
    for event in events:
        one = _times(event, 1)
        steps[one] = steps.get(one, 0) + event.steps
    like = [_times(one, count) for one, count in steps.items() if count]
    merged = sorted(like, key=lambda e: (e.kind, *astuple(e)))
    # Gaussian noise without sampling composes exactly, to that of one step (Dong et al. 2022).
    full = [e for e in merged if isinstance(e, SampledGaussian) and e.sample_rate == 1.0]
    if len(full) < 2 or any(e.noise_multiplier == 0 for e in full):
        return merged
    total = math.fsum(e.steps / e.noise_multiplier**2 for e in full)
    return [SampledGaussian(1.0, total**-0.5, 1), *(e for e in merged if e not in full)]


def _times(event: Event, steps: int) -> Event:
    values: dict[str, Any] = {"count" if isinstance(event, Laplace) else "steps": steps}
    return replace(event, **values)


def rounded(events: list[Event], most: int) -> list[Event]:
    """Returns at most ``most`` events that cost no less (more only if there are more kinds).

    Two become one with the worse of each value and the steps of both. Which two is a matter of
    tightness alone: at each turn those by which a rough cost (about a divergence of order 2)
    grows least.
    """
    groups = list(events)
    while len(groups) > most:
        kinds = np.array([event.kind for event in groups])
        rates = np.array([getattr(event, "sample_rate", 1.0) for event in groups])
        losses = np.array([_rough_loss(event) for event in groups])
        steps = np.array([float(event.steps) for event in groups])
        cost = steps * rates**2 * np.expm1(losses)
        worse = np.maximum.outer(rates, rates) ** 2 * np.expm1(np.maximum.outer(losses, losses))
        growth = np.add.outer(steps, steps) * worse - np.add.outer(cost, cost)
        growth[(kinds[:, None] != kinds) | np.tri(len(groups), dtype=bool)] = np.inf
        i, j = divmod(int(growth.argmin()), len(groups))
        if growth[i, j] == np.inf:
            break
        second = groups.pop(j)
        groups[i] = _worse(groups[i], second)
    return groups


def _rough_loss(event: Event) -> float:
    match event:
        case SampledGaussian():
            loss = event.noise_multiplier**-2
        case Laplace():
            loss = event.scale_over_sensitivity**-2
        case Skellam() | RoundedSkellam() | DiscreteGaussian():
            loss = event.l2_sensitivity**2 / event.variance
    return min(loss, 100.0)


def _worse(first: Event, second: Event) -> Event:
    """Returns an event that costs at least what both, of one kind, do together."""
    worse: dict[str, Any] = {}
    for field, pair in zip(
        fields(first), zip(astuple(first), astuple(second), strict=True), strict=True
    ):
        if field.name in _COUNTS:
            worse[field.name] = sum(pair)
        else:
            worse[field.name] = min(pair) if field.name in _NOISE else max(pair)
    return replace(first, **worse)


def _number(field: str, value: object) -> float | int:
    """Returns a whole number for what is counted, and a float for all else."""
    # A bool is an int to Python. JSON does not tell 1 from 1.0, so a float field takes both.
    if isinstance(value, int) and not isinstance(value, bool):
        return value if field in _WHOLE else float(min(value, 2**63))
    if isinstance(value, float) and field not in _WHOLE:
        return value
    what = "a whole number" if field in _WHOLE else "a number"
    raise PlanError(f"An event's {field} is {what}, not {value!r}.")


def _check(event: Event | _Named) -> None:
    for field, value in asdict(event).items():
        low, high = _BOUNDS[field]
        if not low <= value <= high:  # also what is not a number
            raise PlanError(
                f"An event '{event.kind}' with {field}={value} cannot be accounted for: "
                f"it must lie in [{low:g}, {high:g}]."
            )
