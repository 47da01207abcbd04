"""How much privacy a list of mechanisms has spent: epsilon at delta, the smaller of two bounds.

Privacy loss distributions (Koskela et al. 2020, Doroshenko et al. 2022) from Google's
``dp-accounting``, pessimistic, where it has the mechanism; and Rényi divergences (Mironov 2017)
for all, tighter for very many very noisy steps. Both are upper bounds under the add-or-remove-one
relation. Opacus' PRV and RDP accountants are the oracles in the tests; its GDP accountant lies
below the certified bound and is not used anywhere.
"""

import logging
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from scipy import special

from lepton_common.errors import PlanError
from lepton_common.privacy.events import (
    DiscreteGaussian,
    Event,
    Laplace,
    RoundedSkellam,
    SampledGaussian,
    Skellam,
    merge,
    rounded,
)
from lepton_common.privacy.skellam import (
    ALL_ORDERS,
    ORDERS,
    Values,
    poisson_sampled,
    rounded_skellam_divergence,
    skellam_divergence,
)

# It warns of orders it leaves out, which only makes the bound larger.
logging.getLogger("absl").setLevel(logging.ERROR)

GaussianEvent = SampledGaussian

_COARSE, _FINE = 1e-3, 1e-4  # steps of the privacy loss: in the gate, in reports
# Unlike events, before the nearest are rounded to one: privacy loss costs most time by far.
_MOST_COARSE, _MOST_FINE, _MOST_RENYI = 10, 100, 60
_SIGMA_MIN, _SIGMA_MAX = 0.3, 1e4
_MEANS_NOTHING = 1e3
_DENSE = 11  # below, orders between the integers can be the best ones by something to speak of


def epsilon(
    events: tuple[Event, ...], delta: float, fine: bool = False, enough: float = -math.inf
) -> float:
    """Returns an upper bound on the epsilon that ``events`` spend together at ``delta``.

    Args:
        events: of any kinds, in any order. Where more than 20 (fine: 100) are unlike, those
            nearest to one another are rounded to the worse of each of their values. One event
            more can then lower the bound by a little, as others are rounded.
        delta: in (0, 1).
        fine: whether to take the grid of 1e-4, for reports, which costs 10 times the time.
        enough: a looser bound will do where it is at most this, at a tenth of the time.

    Raises:
        PlanError: delta is outside (0, 1).
    """
    _check_delta(delta)
    # However the same steps were counted, they are composed once.
    merged = tuple(merge(events))
    if not merged:
        return 0.0
    if any(isinstance(e, SampledGaussian) and e.noise_multiplier == 0 for e in merged):
        return math.inf
    only = merged[0]
    if len(merged) == 1 and isinstance(only, SampledGaussian) and only.sample_rate == 1.0:
        return _gaussian_epsilon(math.sqrt(only.steps) / only.noise_multiplier, delta)
    loose = _loose(merged, delta, fine)
    return loose if loose <= enough else _tight(merged, delta, fine)


@lru_cache(maxsize=4096)
def _loose(merged: tuple[Event, ...], delta: float, fine: bool) -> float:
    most = max(_MOST_FINE if fine else _MOST_COARSE, _MOST_RENYI)
    return _renyi_epsilon(rounded(list(merged), most), delta)


@lru_cache(maxsize=4096)
def _tight(merged: tuple[Event, ...], delta: float, fine: bool) -> float:
    most, grid = (_MOST_FINE, _FINE) if fine else (_MOST_COARSE, _COARSE)
    groups = rounded(list(merged), max(most, _MOST_RENYI))
    found = [_loose(merged, delta, fine)]
    # Beyond epsilons that mean anything, distributions would only fill the memory.
    if 0.0 < found[0] < _MEANS_NOTHING and all(map(_has_loss, merged)):
        if len(groups) > most:  # which costs more than so coarse a grid does
            groups, grid = rounded(groups, most), max(grid, 2e-4 * found[0])
        found.append(_loss_epsilon(groups, delta, grid, found[0]))
    pure = [e.count / e.scale_over_sensitivity for e in merged if isinstance(e, Laplace)]
    if len(pure) == len(merged):
        found.append(sum(pure))
    return min(found)


def bounds(events: Iterable[SampledGaussian], delta: float) -> dict[str, float | None]:
    """Returns what three accountants say of sampled Gaussian steps; each is an upper bound.

    Returns:
        ``pld`` (grid of 1e-4), ``rdp``, and ``prv``: Opacus' (Gopi, Lee and Wutschitz, 2021) upper
        end, at an error of 0.01; None where it fails, as with little noise.

    Raises:
        PlanError: delta is outside (0, 1), or there is no noise to account for.
    """
    _check_delta(delta)
    merged = merge(tuple(events))
    gaussians = [e for e in merged if isinstance(e, SampledGaussian) and e.noise_multiplier > 0]
    if not merged or len(gaussians) != len(merged):
        raise PlanError("Three accountants compare only steps of the Gaussian mechanism.")
    renyi = _renyi_epsilon(merged, delta)
    return {
        "pld": _loss_epsilon(merged, delta, _FINE, renyi),
        "rdp": renyi,
        "prv": _prv_epsilon(gaussians, delta),
    }


def calibrate(target_epsilon: float, delta: float, mechanism: Callable[[float], Event]) -> float:
    """Returns the smallest noise multiplier (to 0.1 %) that keeps a mechanism within the target.

    Never less than 0.3, below which the guarantee says next to nothing.

    Args:
        target_epsilon: above 0.
        delta: in (0, 1).
        mechanism: from a noise multiplier to all that is done with it.

    Raises:
        PlanError: no noise multiplier up to 10,000 is enough.
    """

    def spent(noise_multiplier: float) -> float:
        return epsilon((mechanism(noise_multiplier),), delta)

    low, high = _SIGMA_MIN, 1.0
    while spent(high) > target_epsilon:
        low, high = high, 2 * high
        if high > _SIGMA_MAX:
            raise PlanError(
                f"No noise reaches epsilon {target_epsilon} at delta {delta} over "
                f"{mechanism(high).steps} steps; raise privacy.epsilon, or lower rounds or the "
                "local steps."
            )
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if spent(middle) > target_epsilon else (low, middle)
    return high


def _check_delta(delta: float) -> None:
    if not 0.0 < delta < 1.0:
        raise PlanError(f"delta must lie in (0, 1), not {delta}; 1e-5 is the default.")


def _has_loss(event: Event) -> bool:
    """Whether the mechanism's privacy loss distribution is known, and small enough to compute."""
    if isinstance(event, DiscreteGaussian):
        # One coordinate's is known, and an integer vector of a norm below sqrt(2) changes but one.
        return event.l2_sensitivity**2 < 2 and event.variance <= 2.0**16
    return not isinstance(event, Skellam | RoundedSkellam)


def _loss_epsilon(events: Sequence[Event], delta: float, grid: float, about: float) -> float:
    """Returns epsilon by privacy loss distributions; ``about`` is another upper bound of it."""
    grid = max(grid, 1e-5 * min(about, _MEANS_NOTHING))
    composed = None
    for event in events:
        loss = _loss(event, grid)
        composed = loss if composed is None else composed.compose(loss)
    assert composed is not None
    return float(composed.get_epsilon_for_delta(delta))


def _loss(event: Event, grid: float) -> Any:  # noqa: ANN401
    import dp_accounting

    distribution = dp_accounting.pld.privacy_loss_distribution
    match event:
        case SampledGaussian(sample_rate=1.0):
            return distribution.from_gaussian_mechanism(
                event.noise_multiplier / math.sqrt(event.steps), value_discretization_interval=grid
            )
        case SampledGaussian():
            one = distribution.from_gaussian_mechanism(
                event.noise_multiplier,
                sampling_prob=event.sample_rate,
                value_discretization_interval=grid,
                neighboring_relation=dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE,
            )
        case DiscreteGaussian():
            one = distribution.from_discrete_gaussian_mechanism(
                math.sqrt(event.variance), value_discretization_interval=grid, use_connect_dots=True
            )
        case Laplace():
            one = distribution.from_discrete_laplace_mechanism(
                1 / event.scale_over_sensitivity,
                value_discretization_interval=grid,
                use_connect_dots=True,
            )
        case Skellam() | RoundedSkellam():
            raise AssertionError("Skellam noise has no known privacy loss distribution.")
    return one.self_compose(event.steps)


def _renyi_epsilon(events: Sequence[Event], delta: float) -> float:
    """Returns epsilon by Rényi divergences (Canonne, Kamath and Steinke 2020, Proposition 12)."""
    from dp_accounting import rdp

    rows = [event.steps * _divergence(event) for event in events]
    total = np.sum(rows, axis=0)
    found, best = rdp.compute_epsilon(ORDERS, total, delta)
    if best > _DENSE:
        return float(found)
    # The best real order is next to the best integer.
    between = best + np.array([k / 10 for k in range(-9, 10) if k])
    total = np.sum([_between(*pair, between) for pair in zip(events, rows, strict=True)], axis=0)
    return float(min(found, rdp.compute_epsilon(between, total, delta)[0]))


def _divergence(event: Event) -> Values:
    """Returns bounds of one step's Rényi divergences at the integers of `ORDERS`."""
    match event:
        case SampledGaussian():
            whole = ALL_ORDERS / (2 * event.noise_multiplier**2)
            return poisson_sampled(whole, event.sample_rate)
        case Skellam():
            whole = skellam_divergence(
                event.l2_sensitivity, event.l1_sensitivity, event.variance, ALL_ORDERS
            )
            return poisson_sampled(whole, event.sample_rate)
        case RoundedSkellam():
            whole = rounded_skellam_divergence(
                event.l2_sensitivity, event.dimension, event.variance, ALL_ORDERS
            )
            return poisson_sampled(whole, event.sample_rate)
        case DiscreteGaussian():  # Canonne, Kamath and Steinke 2020, Theorem 4
            return ORDERS * event.l2_sensitivity**2 / (2 * event.variance)
        case Laplace():
            return _pure(1 / event.scale_over_sensitivity, ORDERS)


def _between(event: Event, divergences: Values, orders: Values) -> Values:
    """Returns bounds for all steps at real ``orders``, given those at `ORDERS`."""
    match event:
        case SampledGaussian(sample_rate=rate) if rate < 1.0 and event.noise_multiplier >= 0.05:
            return event.steps * _sampled_gaussian(rate, event.noise_multiplier, orders)
        case Laplace():
            return event.count * _pure(1 / event.scale_over_sensitivity, orders)
        case _:
            # (a - 1) D_a is convex in a (van Erven and Harremoës 2014), so below its chords.
            known = np.append(1.0, ORDERS), np.append(0.0, (ORDERS - 1) * divergences)
            chords: Values = np.interp(orders, *known)
            return chords / (orders - 1)


def _pure(loss: float, orders: Values) -> Values:
    """Returns the divergences of randomised response, of which each answer loses ``loss``.

    No mechanism that is purely differentially private with this epsilon has larger ones (Kairouz,
    Oh and Viswanath 2015).
    """
    # log(cosh((a - 1/2) loss) / cosh(loss/2)), as log cosh x = x + log((1 + exp(-2x))/2).
    high, low = (2 * orders - 1) * loss, loss
    logs: Values = (high - low) / 2 + np.log1p(np.exp(-high)) - np.log1p(np.exp(-low))
    return logs / (orders - 1)


def _sampled_gaussian(rate: float, sigma: float, orders: Values) -> Values:
    """Returns the divergences of the sampled Gaussian mechanism at real orders above 1.

    By the trapezoid rule on E[r^a - 1 - a(r - 1)] under N(0, sigma²), with the likelihood ratio
    r(x) = 1 - q + q exp((2x - 1)/(2 sigma²)): analytic, so the error falls exponentially in the
    step, and without the 1 that would swallow a small rate. The other direction is no larger
    (Mironov, Talwar and Zhang 2019, Theorem 5).
    """
    step = min(sigma, sigma**2) / 2
    x = np.arange(-13 * sigma, orders.max() + 13 * sigma, step)
    log_r = np.logaddexp(np.log1p(-rate), np.log(rate) + (2 * x - 1) / (2 * sigma**2))
    a = orders[:, None]
    power = a * log_r
    small = np.minimum(power, 1.0)
    near = np.maximum(np.expm1(small) - a * np.expm1(small / a), 0.0)
    far = np.maximum(power, 1.0)
    rest = (a - 1) * np.exp(-far) - a * np.exp(far / a - far)
    with np.errstate(divide="ignore"):  # 0 where r is 1
        added = np.where(power < 1, np.log(near), far + np.log1p(rest))
    added += np.log(step / (sigma * math.sqrt(2 * math.pi))) - x**2 / (2 * sigma**2)
    logs: Values = special.logsumexp(added, axis=1)
    return np.logaddexp(0.0, logs) / (orders - 1)


def _prv_epsilon(events: Sequence[SampledGaussian], delta: float) -> float | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a package that warns of itself, and of rounding
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(e.noise_multiplier, e.sample_rate, e.steps) for e in events]
        try:
            found = float(accountant.get_epsilon(delta))
        except (ArithmeticError, ValueError, RuntimeError, MemoryError):
            return None
    return found if math.isfinite(found) else None


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """Inverts the exact Gaussian curve (Balle and Wang 2018, Theorem 8) for sensitivity ``mu``."""
    from scipy import optimize

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
