"""What canaries' scores say of leakage if they are those of a Gaussian mechanism: an estimate.

Nothing tells a mechanism with a record from one without better than the likelihood ratio (Neyman
and Pearson 1933). Summed over many steps it is about normal, as far apart with and without the
record as a Gaussian mechanism of some sensitivity mu makes it (Dong, Roth and Su 2022). The
estimate of mu from thousands of canaries is sharp, but supposes what a certificate may not.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy import stats

from lepton_cli.privacy_audit.canaries import Coins, Values
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import SampledGaussian
from lepton_common.privacy.plan import PrivacyPlan

_RESAMPLES = 1000
_ENDS = (0.025, 0.975)
_LARGEST_MU = 1e6  # any more means no noise at all


@dataclass(frozen=True)
class GaussianEstimate:
    """What leaks if scores are those of a Gaussian mechanism: an estimate, not a bound.

    Attributes:
        mu: distance of the scores' means, of canaries in and out, in standard deviations.
        interval: 95 % bootstrap interval of ``mu``.
        plan_mu: the same distance for a faultless run of the plan.
        epsilon: what a Gaussian mechanism of ``mu`` spends at the plan's delta.
        epsilon_interval: at the ends of ``interval``.
        plan_epsilon: at ``plan_mu``; below the accountant's epsilon where batches are sampled.
    """

    mu: float
    interval: tuple[float, float]
    plan_mu: float
    epsilon: float
    epsilon_interval: tuple[float, float]
    plan_epsilon: float


def log_likelihood_ratio(shown: Values, rate: float, noise_multiplier: float) -> Values:
    """Returns log of (the density with the canary in the data over that without it).

    Without sampling it is the release itself, shifted and scaled.

    Args:
        shown: what a step released at the canaries' weights, in clipping norms.
        rate: chance of a canary in the data to be part of a step.
        noise_multiplier: standard deviation of the noise, in clipping norms.
    """
    here = (2 * shown - 1) / (2 * noise_multiplier**2)
    if rate == 1.0:
        return here
    mixed: Values = np.logaddexp(math.log1p(-rate), math.log(rate) + here)
    return mixed


def gaussian_estimate(
    scores: Values, inside: Coins, plan: PrivacyPlan, steps: int
) -> GaussianEstimate:
    """Returns what the scores' distance says of leakage, supposing Gaussian scores."""
    within, without = scores[inside], scores[~inside]
    draws = np.random.default_rng()
    resampled = [
        _distance(draws.choice(within, len(within)), draws.choice(without, len(without)))
        for _ in range(_RESAMPLES)
    ]
    mu = _distance(within, without)
    low, high = np.quantile(resampled, _ENDS)
    ideal = faultless_mu(plan.sample_rate, plan.noise_multiplier, steps)
    return GaussianEstimate(
        mu=mu,
        interval=(float(low), float(high)),
        plan_mu=ideal,
        epsilon=gaussian_epsilon(mu, plan.delta),
        epsilon_interval=(
            gaussian_epsilon(float(low), plan.delta),
            gaussian_epsilon(float(high), plan.delta),
        ),
        plan_epsilon=gaussian_epsilon(ideal, plan.delta),
    )


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Returns what the Gaussian mechanism of sensitivity ``mu`` standard deviations spends."""
    if mu <= 0.0:
        return 0.0
    if mu >= _LARGEST_MU:
        return math.inf
    return epsilon((SampledGaussian(1.0, 1.0 / mu, 1),), delta)


def faultless_mu(rate: float, noise_multiplier: float, steps: int) -> float:
    """Returns the distance of scores that a faultless run shows on average.

    Of one step by the trapezoid rule, exact for so smooth a density; of all, by their sum.
    """
    sigma = noise_multiplier
    grid = np.linspace(-10 * sigma, 1 + 10 * sigma, 20_001 + int(200 / sigma))
    ratio = log_likelihood_ratio(grid, rate, sigma)
    out = stats.norm.pdf(grid, scale=sigma)
    both = {"out": out, "in": (1 - rate) * out + rate * stats.norm.pdf(grid, 1.0, sigma)}
    means = {name: np.trapezoid(law * ratio, grid) for name, law in both.items()}
    variances = [
        np.trapezoid(law * np.square(ratio - means[name]), grid) for name, law in both.items()
    ]
    return float(math.sqrt(steps) * (means["in"] - means["out"]) / math.sqrt(np.mean(variances)))


def _distance(within: Values, without: Values) -> float:
    """Returns the distance of means in pooled standard deviations, at least 0."""
    spread = math.sqrt((within.var(ddof=1) + without.var(ddof=1)) / 2)
    difference = max(0.0, float(within.mean() - without.mean()))
    return difference / max(spread, difference / _LARGEST_MU) if difference else 0.0
