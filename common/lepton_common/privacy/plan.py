"""The frozen privacy plan: the only object that may emit accounting events.

Sampling, clipping, noise and accounting all read the same plan, so the mechanism that runs and
the mechanism that is accounted for cannot drift apart.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, replace
from functools import cached_property

from lepton_common.errors import PlanError
from lepton_common.privacy.accounting import calibrate, epsilon
from lepton_common.privacy.events import Event, RoundedSkellam, SampledGaussian

RELATION = "add-or-remove-one"
WHOLE_SITE = "site"  # the unit that is all of a site's data
# Of the noise that each site adds to a shared sum, in squared steps of the grid, which follows
# from it: fine enough that rounding costs next to nothing, and within 32 bits for any cohort.
SHARE_VARIANCE = 2.0**28
# Of a model that private steps start from: larger weights would magnify the rounding of gradients,
# which depends on the records beside a record, beyond what a clipping norm is charged for.
LARGEST_WEIGHT = 100.0


@dataclass(frozen=True)
class SharedNoise:
    """Sites that each add a share of one sum's noise, under secure aggregation.

    The sum is noised enough by the shares that are certain: of the fewest sites that a sum may
    have, less those that may collude, who could leave theirs out (Truex et al. 2019).

    Attributes:
        sites: sites of the cohort, n.
        survivors: fewest sites in a sum, t.
        colluders: sites that may collude with the server and each other, f.
        dimension: number of values in the sum, d.
    """

    sites: int
    survivors: int
    colluders: int
    dimension: int

    def __post_init__(self) -> None:
        """Refuses a sum without any noise that is certain.

        Raises:
            PlanError: the colluders may be all of its sites.
        """
        if not 0 <= self.colluders < self.survivors <= self.sites or self.dimension < 1:
            raise PlanError(
                f"A sum of at least {self.survivors} of {self.sites} sites, {self.colluders} of "
                "them colluding, has no noise that is certain; ask more sites."
            )

    @property
    def certain(self) -> int:
        """How many shares are certain, t - f."""
        return self.survivors - self.colluders


def for_people(unit: str, event: Event) -> Event:
    """Returns what an event that protects a whole site, or a unit of its data, is to people.

    One record more replaces a site's update by another: both are at most a clipping norm long,
    and so twice that apart.
    """
    if unit != WHOLE_SITE:
        return event
    assert isinstance(event, RoundedSkellam), "whole updates leave in sums with shared noise"
    return replace(event, l2_sensitivity=2.0 * event.l2_sensitivity)


@dataclass(frozen=True)
class PrivacyPlan:
    """What DP-SGD does at a site, for a whole run; also with whole updates in place of gradients.

    Attributes:
        unit: what is protected as one: ``row``, what the schema's id column names, or ``site``.
        delta: in (0, 1); fixed for the run.
        sample_rate: Poisson rate per privacy unit and step, in (0, 1].
        noise_multiplier: noise standard deviation over the clipping norm, > 0; with shared noise
            that of the shares that are certain, together.
        clipping_norm: L2 bound on one unit's summed gradient, > 0.
        steps_per_round: private steps behind one release.
        max_steps: steps the plan covers; no further step is accounted for, so none is taken.
        denominator: what the noisy sum is divided by: a public constant, never the private count.
        shared: None where the site's own noise is all that counts.
        relation: neighbouring relation, always ``add-or-remove-one`` unit.
    """

    unit: str
    delta: float
    sample_rate: float
    noise_multiplier: float
    clipping_norm: float
    steps_per_round: int
    max_steps: int
    denominator: float
    shared: SharedNoise | None = None
    relation: str = RELATION

    def __post_init__(self) -> None:
        """Refuses a plan that gives no guarantee.

        Raises:
            PlanError: naming the value and its bound.
        """
        bounds = {
            "delta": 0.0 < self.delta < 1.0,
            # A whole site is in each sum that it answers.
            "sample_rate": 0.0 < self.sample_rate <= 1.0
            and (self.unit != WHOLE_SITE or self.sample_rate == 1.0),
            "noise_multiplier": 0.0 < self.noise_multiplier < float("inf"),
            "clipping_norm": 0.0 < self.clipping_norm < float("inf"),
            "steps_per_round": self.steps_per_round >= 1,
            "shared": self.unit != WHOLE_SITE or self.shared is not None,
            "max_steps": self.max_steps >= self.steps_per_round,
            "denominator": 0.0 < self.denominator < float("inf"),
            "relation": self.relation == RELATION,
        }
        if self.shared is not None and self.steps_per_round > 1:
            raise PlanError(
                f"steps_per_round={self.steps_per_round}: noise is shared by one private step a "
                "round, because more would each need all of it; take one local step."
            )
        for name, holds in bounds.items():
            if not holds:
                raise PlanError(
                    f"A privacy plan with {name}={getattr(self, name)} gives no guarantee; "
                    "see 'lepton config' for the privacy settings in force."
                )

    @cached_property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the plan; rides in every charge and receipt."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def grid(self) -> float:
        """Step of the grid that a shared sum is rounded to, in the units of the clipping norm."""
        if self.shared is None:
            raise PlanError("Only a sum with shared noise is rounded to a grid.")
        return self.own_noise / math.sqrt(SHARE_VARIANCE)

    @property
    def own_noise(self) -> float:
        """Standard deviation of the noise that the site adds itself."""
        shares = self.shared.certain if self.shared else 1
        return self.noise_multiplier * self.clipping_norm / math.sqrt(shares)

    def event(self, rounds: int = 1) -> Event:
        """Returns the accounting event of ``rounds`` rounds of this plan."""
        steps = self.steps_per_round * rounds
        if self.shared is None:
            return SampledGaussian(self.sample_rate, self.noise_multiplier, steps)
        return shared_event(
            self.sample_rate, self.noise_multiplier, steps, self.shared, self.shared.certain
        )

    def epsilon(self, rounds: int) -> float:
        """Returns the epsilon spent at the plan's delta after ``rounds`` rounds."""
        return epsilon((self.event(rounds),), self.delta)


def shared_event(
    sample_rate: float, noise_multiplier: float, steps: int, shared: SharedNoise, honest: int
) -> RoundedSkellam:
    """Returns the event of sums in which ``honest`` sites add the shares of a plan."""
    return RoundedSkellam(
        sample_rate=sample_rate,
        l2_sensitivity=math.sqrt(shared.certain * SHARE_VARIANCE) / noise_multiplier,
        dimension=shared.dimension,
        variance=honest * SHARE_VARIANCE,
        steps=steps,
    )


def calibrated_noise(
    *,
    target_epsilon: float,
    delta: float,
    sample_rate: float,
    max_steps: int,
    shared: SharedNoise | None = None,
) -> float:
    """Returns the noise multiplier with which ``max_steps`` steps stay within the target.

    Computed from public values only: a noise level that depended on a site's true size would
    reveal it.

    Raises:
        PlanError: no noise multiplier up to 10,000 is enough.
    """
    return calibrate(
        target_epsilon, delta, lambda sigma: _whole_run(sample_rate, sigma, max_steps, shared)
    )


def planned_epsilon(
    *,
    noise_multiplier: float,
    delta: float,
    sample_rate: float,
    max_steps: int,
    shared: SharedNoise | None = None,
) -> float:
    """Returns what ``max_steps`` steps cost at ``delta``."""
    return epsilon((_whole_run(sample_rate, noise_multiplier, max_steps, shared),), delta)


def _whole_run(rate: float, sigma: float, steps: int, shared: SharedNoise | None) -> Event:
    if shared is None:
        return SampledGaussian(rate, sigma, steps)
    return shared_event(rate, sigma, steps, shared, shared.certain)


def public_size_class(units: int) -> int:
    """Returns the size class of a site: the power of two nearest in ratio to its units.

    An operator publishes a class and nothing finer, because the true count is private.
    """
    return 1 << max(0, round(math.log2(max(units, 1))))
