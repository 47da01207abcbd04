"""Rényi divergences of the Skellam mechanism, and of Poisson sampling, at integer orders.

Skellam noise has no privacy loss distribution in closed form for vectors, and is not dominated
by that of one coordinate; so it is accounted for by Rényi divergences (Mironov 2017) alone.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

Values = NDArray[np.float64]

# Where a bound is evaluated. Denser at the top would make epsilons of about 0.05 smaller by 1 %.
ORDERS: Values = np.array(
    [*range(2, 65), *range(72, 128, 8), *range(128, 1025, 64)], dtype=np.float64
)
# What Poisson sampling needs below each of them.
ALL_ORDERS: Values = np.arange(2, 1025, dtype=np.float64)


def skellam_divergence(
    l2_sensitivity: float, l1_sensitivity: float, variance: float, orders: Values
) -> Values:
    """Returns upper bounds of D_a(Sk + s || Sk), for integer vectors s within the sensitivities.

    Agarwal, Kairouz and Liu (NeurIPS 2021), Theorem 3.5 and its corollary for vectors, with
    D1, D2 the L1 and L2 sensitivities and v the variance:

        a D2²/(2v) + min(((2a - 1) D2² + 6 D1)/(4v²), 3 D1/(2v)).

    Conditions: a is an integer, s is one, and v is the whole variance of the noise on each
    coordinate, of independent differences of two Poisson(v/2). As s is whole, |s|₁ <= |s|₂² and
    |s|₂ <= |s|₁, so the smaller sensitivities may be taken.

    Args:
        l2_sensitivity: in steps of the integer grid.
        l1_sensitivity: in steps of the integer grid.
        variance: in squared steps.
        orders: integers of 2 and more, shape [n].

    Returns:
        Divergences in nats, shape [n].
    """
    square = min(l2_sensitivity**2, l1_sensitivity**2)
    absolute = min(l1_sensitivity, l2_sensitivity**2)
    near = ((2 * orders - 1) * square + 6 * absolute) / (4 * variance**2)
    return orders * square / (2 * variance) + np.minimum(near, 3 * absolute / (2 * variance))


def rounded_skellam_divergence(
    l2_sensitivity: float, dimension: int, variance: float, orders: Values
) -> Values:
    """Returns upper bounds of D_a for real vectors that are rounded with a dither, then noised.

    A coordinate x becomes floor(x + u), u uniform in [0, 1) and independent of the data, plus
    Skellam noise of the whole variance v. Let a unit change the vector by s, |s|₂ <= D. For each u
    the rounded vectors differ by an integer vector K of independent K_j, each floor(s_j) or
    ceil(s_j) and s_j on average, and `skellam_divergence` bounds D_a by a|K|²/(2v) + c, with c its
    second term at the largest K there can be: |K|₂ <= D + √d. As exp((a - 1) D_a) is jointly
    convex, the divergence of the mixtures over u is at most 1/(a - 1) log of the mean of
    exp(t|K|²), t = a(a - 1)/(2v), plus c. Now E|K|² = |s|² + Σ p_j(1 - p_j), with p_j the
    fractional part of s_j, at most D² + min(d/4, √d D); and each K_j² has two values, no more than
    2|s_j| + 1 apart, so that Hoeffding's lemma adds at most t²/8 Σ(2|s_j| + 1)² <= t²(2D + √d)²/8:

        a/(2v) (D² + min(d/4, √d D) + t (2D + √d)²/8) + c.

    The worst case without a dither, D + √d in the place of D, would cost far more: it supposes
    that all coordinates are rounded against the unit at once. That this composes with Poisson
    sampling is seen in `poisson_sampled`, whose sum is linear in exp((k - 1) d(k)): it holds for
    each u, and its mean over u is its value at the bound above.

    Args:
        l2_sensitivity: D, in steps of the grid.
        dimension: d, number of values.
        variance: v, in squared steps.
        orders: integers of 2 and more, shape [n].

    Returns:
        Divergences in nats, shape [n].
    """
    root = np.sqrt(dimension)
    largest = l2_sensitivity + root
    tilt = orders * (orders - 1) / (2 * variance)
    square = l2_sensitivity**2 + min(dimension / 4, root * l2_sensitivity)
    square = square + tilt * (2 * l2_sensitivity + root) ** 2 / 8
    longest = skellam_divergence(largest, root * largest, variance, orders)
    correction = longest - orders * largest**2 / (2 * variance)
    bounds: Values = orders * square / (2 * variance) + correction
    return bounds


def poisson_sampled(divergence: Values, rate: float) -> Values:
    """Returns upper bounds at `ORDERS` for a mechanism of which each unit is part with ``rate``.

    With d(k) the unsampled bounds, order a costs

        1/(a - 1) log(1 + sum over k = 2..a of C(a, k) (1 - q)^(a-k) q^k (exp((k-1) d(k)) - 1)).

    This is the binomial expansion of E_P[((1 - q) + q Q/P)^a], P without and Q with the unit, and
    so exact in d(k) for the divergence of (1 - q)P + qQ from P. Zhu and Wang (2019, Theorem 5)
    have a factor 3 on the terms from k = 3 on, for mechanisms about which nothing is known; it is
    not needed (their Theorem 6; Mironov, Talwar and Zhang 2019, Theorem 5) where some reflection
    of the outcomes swaps P and Q, as x -> s - x does for symmetric noise and a shift by s. There
    the divergence in the other direction is no larger: let f = Q/P at x, a' = 1 - q + qf at x and
    c = 1/(1 - q + q/f), from its mirror image. With h_t(u) = u^t - u^(1-t), the two directions
    differ at the pair by h_t(a') - (f/c) h_t(c), which is 0 at t = 1; and as a' >= c >= 1 (for
    f >= 1), h_t(a')/h_1(a') = sinh((t - 1/2) log a')/sinh(log(a')/2) >= h_t(c)/h_1(c).

    Conditions: symmetric noise added to a sum whose sensitivities hold for each sample of the
    other units (over these the divergence is quasi-convex); integer orders; secret Poisson
    sampling; the add-or-remove-one relation.

    Args:
        divergence: unsampled bounds at `ALL_ORDERS`.
        rate: q, in (0, 1].

    Returns:
        Divergences in nats, of the shape of `ORDERS`.
    """
    if rate == 1.0:
        unsampled: Values = divergence[ORDERS.astype(int) - 2]
        return unsampled
    exponent = (ALL_ORDERS - 1) * divergence
    # As 1 + what is added and never a sum near 1, which would lose the whole of a small rate.
    with np.errstate(divide="ignore"):
        added = exponent + np.log(-np.expm1(-exponent)) + ALL_ORDERS * np.log(rate)
    left = np.maximum(ORDERS[:, None] - ALL_ORDERS, 0.0)
    terms = _log_binomials() + added + left * np.log1p(-rate)
    logs: Values = special.logsumexp(terms, axis=1)
    return np.logaddexp(0.0, logs) / (ORDERS - 1)


@cache
def _log_binomials() -> Values:
    """Returns log C(a, k) for a in `ORDERS`, k in `ALL_ORDERS`; minus infinity for k > a."""
    top, k = ORDERS[:, None], ALL_ORDERS
    logs = -special.betaln(np.maximum(top - k, 0) + 1, k + 1) - np.log(top + 1)
    return np.where(k <= top, logs, -np.inf)
