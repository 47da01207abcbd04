"""The frozen privacy plan: the only object that may emit accounting events.

Sampling, clipping, noise and accounting all read the same plan, so the mechanism that runs and
the mechanism that is accounted for cannot drift apart.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass

from lepton_common.errors import PlanError
from lepton_common.privacy.accounting import GaussianEvent, calibrate, epsilon

RELATION = "add-or-remove-one"


@dataclass(frozen=True)
class PrivacyPlan:
    """What record-level DP-SGD does at a site, for a whole run.

    Attributes:
        unit: what is protected as one: ``row``, or what the schema's id column names.
        delta: in (0, 1); fixed for the run.
        sample_rate: Poisson rate per privacy unit and step, in (0, 1].
        noise_multiplier: noise standard deviation over the clipping norm, > 0.
        clipping_norm: L2 bound on one unit's summed gradient, > 0.
        steps_per_round: private steps behind one release.
        max_steps: steps the plan covers; no further step is accounted for, so none is taken.
        denominator: what the noisy sum is divided by: a public constant, never the private count.
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
    relation: str = RELATION

    def __post_init__(self) -> None:
        """Refuses a plan that gives no guarantee.

        Raises:
            PlanError: naming the value and its bound.
        """
        bounds = {
            "delta": 0.0 < self.delta < 1.0,
            "sample_rate": 0.0 < self.sample_rate <= 1.0,
            "noise_multiplier": 0.0 < self.noise_multiplier < float("inf"),
            "clipping_norm": 0.0 < self.clipping_norm < float("inf"),
            "steps_per_round": self.steps_per_round >= 1,
            "max_steps": self.max_steps >= self.steps_per_round,
            "denominator": 0.0 < self.denominator < float("inf"),
            "relation": self.relation == RELATION,
        }
        for name, holds in bounds.items():
            if not holds:
                raise PlanError(
                    f"A privacy plan with {name}={getattr(self, name)} gives no guarantee; "
                    "see 'lepton config' for the privacy settings in force."
                )

    @property
    def digest(self) -> str:
        """Hexadecimal SHA-256 of the plan; rides in every charge and receipt."""
        text = json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def event(self, rounds: int = 1) -> GaussianEvent:
        """Returns the accounting event of ``rounds`` rounds of this plan."""
        return GaussianEvent(self.sample_rate, self.noise_multiplier, self.steps_per_round * rounds)

    def epsilon(self, steps: int) -> float:
        """Returns the epsilon spent at the plan's delta after ``steps`` steps."""
        event = GaussianEvent(self.sample_rate, self.noise_multiplier, steps)
        return epsilon((event,), self.delta)


def calibrated_noise(
    *, target_epsilon: float, delta: float, sample_rate: float, max_steps: int
) -> float:
    """Returns the noise multiplier with which ``max_steps`` steps stay within the target.

    Computed from public values only: a noise level that depended on a site's true size would
    reveal it.
    """
    return calibrate(target_epsilon, delta, sample_rate, max_steps)


def public_size_class(units: int) -> int:
    """Returns the size class of a site: the power of two nearest in ratio to its units.

    An operator publishes a class and nothing finer, because the true count is private.
    """
    return 1 << max(0, round(math.log2(max(units, 1))))
