"""How much privacy a list of mechanisms has spent: epsilon at delta, by PLD.

Privacy loss distributions (Koskela et al. 2020, Doroshenko et al. 2022) from Google's
``dp-accounting``, pessimistic, under the add-or-remove-one relation; where Rényi accounting
(Mironov 2017) is tighter, as for very many very noisy steps, its bound is taken: both are upper
bounds. Opacus' PRV and RDP accountants are the oracles in the tests; its GDP accountant lies
below the certified bound and is not used anywhere.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache

import dp_accounting
from dp_accounting import pld, rdp
from scipy import optimize, special

from lepton_common.errors import PlanError

# It warns of orders it leaves out, which only makes the bound larger.
logging.getLogger("absl").setLevel(logging.ERROR)

_GRID = 1e-3
_SIGMA_MIN, _SIGMA_MAX = 0.3, 1e4


@dataclass(frozen=True)
class GaussianEvent:
    """Some steps of the Poisson-sampled Gaussian mechanism (Mironov et al. 2019).

    Attributes:
        sample_rate: probability that a privacy unit takes part in a step, in (0, 1].
        noise_multiplier: standard deviation of the noise over the clipping norm.
        steps: how many such steps.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int

    def record(self) -> dict[str, float | int]:
        """Returns the event as plain values, for logs and messages."""
        return asdict(self)


@lru_cache(maxsize=4096)
def epsilon(events: tuple[GaussianEvent, ...], delta: float) -> float:
    """Returns an upper bound on the epsilon that ``events`` spend together at ``delta``.

    Raises:
        PlanError: delta is outside (0, 1).
    """
    if not 0.0 < delta < 1.0:
        raise PlanError(f"delta must lie in (0, 1), not {delta}; 1e-5 is the default.")
    merged = _merge(events)
    if not merged:
        return 0.0
    if any(event.noise_multiplier == 0 for event in merged):
        return math.inf
    if all(event.sample_rate == 1.0 for event in merged):
        return _gaussian_epsilon(
            math.sqrt(sum(e.steps / e.noise_multiplier**2 for e in merged)), delta
        )
    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountants = (
        pld.PLDAccountant(relation, value_discretization_interval=_GRID),
        rdp.RdpAccountant(neighboring_relation=relation),
    )
    for accountant in accountants:
        for event in merged:
            accountant.compose(_dp_event(event))
    return min(float(accountant.get_epsilon(delta)) for accountant in accountants)


def calibrate(target_epsilon: float, delta: float, sample_rate: float, steps: int) -> float:
    """Returns the smallest noise multiplier (to 0.1 %) that keeps ``steps`` within the target.

    Never less than 0.3, below which the guarantee says next to nothing.

    Raises:
        PlanError: no noise multiplier up to 10,000 is enough.
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon((GaussianEvent(sample_rate, noise_multiplier, steps),), delta)

    low, high = _SIGMA_MIN, 1.0
    while spent(high) > target_epsilon:
        low, high = high, 2 * high
        if high > _SIGMA_MAX:
            raise PlanError(
                f"No noise reaches epsilon {target_epsilon} at delta {delta} over {steps} steps; "
                "raise privacy.epsilon, or lower rounds or the local steps."
            )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > target_epsilon else (low, middle)
    return high


def _merge(events: Sequence[GaussianEvent]) -> list[GaussianEvent]:
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.sample_rate, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.steps
    return [GaussianEvent(q, sigma, count) for (q, sigma), count in sorted(steps.items()) if count]


def _dp_event(event: GaussianEvent) -> dp_accounting.DpEvent:
    one = dp_accounting.GaussianDpEvent(event.noise_multiplier)
    if event.sample_rate < 1.0:
        one = dp_accounting.PoissonSampledDpEvent(event.sample_rate, one)
    return dp_accounting.SelfComposedDpEvent(one, event.steps)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Inverts the exact Gaussian curve (Balle and Wang 2018, Theorem 8) for sensitivity ``mu``."""

    def excess(eps: float) -> float:
        # Φ(μ/2 - ε/μ) - e^ε Φ(-μ/2 - ε/μ) - δ, its second term in logarithms against overflow.
        second = eps + special.log_ndtr(-mu / 2 - eps / mu)
        return float(special.ndtr(mu / 2 - eps / mu) - math.exp(min(second, 0.0)) - delta)

    if excess(0.0) <= 0.0:
        return 0.0
    high = 1.0
    while excess(high) > 0.0:
        high *= 2.0
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-12)) + 1e-9
