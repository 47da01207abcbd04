"""A lower bound on epsilon from one training run with many canaries (Steinke et al. 2023).

Each canary is in the data or not, by a fair coin of its own. Whoever sees the releases guesses the
coins of which they are surest. Were the mechanism (epsilon, delta)-differentially private, only so
many guesses could be right; more of them refute that epsilon. Beside this certified bound stands
the sharper estimate of `gaussian`, which certifies nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import optimize, special, stats

from lepton_cli.privacy_audit.canaries import CPU, CanarySite, Coins, Values, draw_present
from lepton_cli.privacy_audit.checks import (
    Check,
    by_chance,
    two_sided_chi_square,
    two_sided_normal,
)
from lepton_cli.privacy_audit.gaussian import (
    GaussianEstimate,
    gaussian_estimate,
    log_likelihood_ratio,
)
from lepton_common.privacy.plan import PrivacyPlan

CONFIDENCE = 0.95
# How many of the canaries are guessed, set before any release is seen. Few guesses show small
# leaks best, many can show large ones.
GUESSED = (1 / 16, 1 / 8, 1 / 4, 1 / 2)


@dataclass(frozen=True)
class Guesses:
    """One number of guesses.

    Attributes:
        guesses: canaries guessed; of the others none is.
        correct: how many of them rightly.
        epsilon: lower bound by these guesses alone, at their share of what may fail.
    """

    guesses: int
    correct: int
    epsilon: float


@dataclass(frozen=True)
class OneRun:
    """What one training run showed.

    Attributes:
        canaries: how many there were.
        present: how many of them were in the data.
        certified_epsilon: lower bound on epsilon that holds with `CONFIDENCE`.
        tried: the numbers of guesses behind it.
        gaussian_estimate: see `GaussianEstimate`.
        checks: of noise and signal at the canaries' weights.
    """

    canaries: int
    present: int
    certified_epsilon: float
    tried: list[Guesses]
    gaussian_estimate: GaussianEstimate
    checks: list[Check]


def audit_one_run(
    plan: PrivacyPlan,
    steps: int,
    canaries: int,
    device: torch.device = CPU,
    advance: Callable[[], None] = lambda: None,
) -> OneRun:
    """Trains once on canaries and returns what the releases give away.

    Args:
        plan: every step of it is released on its own, as its accounting supposes.
        steps: how many.
        canaries: how many, each present by a fair secret coin.
        device: where the site trains.
        advance: called after each step.
    """
    present = draw_present(canaries)
    inside = np.zeros(canaries, dtype=bool)
    inside[present] = True
    site = CanarySite(replace(plan, steps_per_round=1), canaries, present, steps, device)
    scores = np.zeros(canaries)
    signal = squares = 0.0
    for _ in range(steps):
        shown = site.release()
        scores += log_likelihood_ratio(shown, plan.sample_rate, plan.noise_multiplier)
        signal += float(shown[inside].sum())
        squares += float(np.square(shown[~inside]).sum())
        advance()
    certified, tried = certified_bound(scores, inside, plan.delta)
    return OneRun(
        canaries=canaries,
        present=len(present),
        certified_epsilon=certified,
        tried=tried,
        gaussian_estimate=gaussian_estimate(scores, inside, plan, steps),
        checks=_checks(
            plan, signal, len(present) * steps, squares, (canaries - len(present)) * steps
        ),
    )


def certified_bound(scores: Values, inside: Coins, delta: float) -> tuple[float, list[Guesses]]:
    """Returns a lower bound on epsilon that holds with `CONFIDENCE`, and what it came from.

    As many of the highest scores are guessed to be in as of the lowest to be out. The numbers of
    guesses share what may fail among them (Bonferroni), so the best of their bounds holds.
    """
    order = np.argsort(scores)
    failure = (1 - CONFIDENCE) / len(GUESSED)
    tried = []
    for share in GUESSED:
        half = max(1, int(len(scores) * share / 2))
        correct = int(inside[order[-half:]].sum() + (~inside[order[:half]]).sum())
        bound = lower_bound(len(scores), 2 * half, correct, delta, failure)
        tried.append(Guesses(2 * half, correct, bound))
    return max(guess.epsilon for guess in tried), tried


def p_value(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Returns an upper bound on the chance of so many right guesses, under a promise.

    Steinke, Nasr and Jagielski (NeurIPS 2023), Appendix D: with B binomial, of so many guesses that
    are each right with the chance e^ε/(1 + e^ε),

        P[B >= v] + 2 m δ max over i = 1..v of P[v > B >= v - i]/i.

    Args:
        canaries: m, each in or out by a fair coin of its own.
        guesses: how many coins were guessed, in [0, canaries]; which, may depend on the releases.
        correct: v, how many of them rightly.
        epsilon: of the promise, at least 0.
        delta: of the promise.
    """
    rate = special.expit(epsilon)
    p = stats.binom.sf(correct - 1, guesses, rate)
    if correct and delta:
        below = np.cumsum(stats.binom.pmf(np.arange(correct - 1, -1, -1), guesses, rate))
        p += 2 * canaries * delta * (below / np.arange(1, correct + 1)).max()
    return float(min(p, 1.0))


def lower_bound(canaries: int, guesses: int, correct: int, delta: float, failure: float) -> float:
    """Returns an epsilon that is refuted, with every smaller one, unless ``failure`` happened.

    A promise of less is one of more, so that wherever the p-value is below ``failure``, all
    epsilons up to there are refuted.
    """

    def excess(eps: float) -> float:
        return p_value(canaries, guesses, correct, eps, delta) - failure

    if excess(0.0) >= 0.0:
        return 0.0
    high = 1.0
    while excess(high) < 0.0:
        high *= 2.0
    return float(optimize.brentq(excess, 0.0, high, xtol=1e-9))


def _checks(
    plan: PrivacyPlan, signal: float, shown: int, squares: float, silent: int
) -> list[Check]:
    """Returns what the canaries' own weights say of noise and clipping, by exact laws.

    A canary in the data adds 1 with the plan's rate; one that is not leaves pure noise.
    """
    rate, sigma = plan.sample_rate, plan.noise_multiplier
    spread = math.sqrt((rate * (1 - rate) + sigma**2) / shown)
    mean, deviation = signal / shown, math.sqrt(squares / silent)
    return [
        by_chance(
            "canaries: share of a present one in a step",
            two_sided_normal((mean - rate) / spread),
            f"{mean:.4g} clipping norms",
            f"{rate:.4g} ± {spread:.2g}",
        ),
        by_chance(
            "canaries: noise where none is present",
            two_sided_chi_square(squares / sigma**2, silent),
            f"{deviation:.5g} clipping norms",
            f"{sigma:.5g} ± {sigma / math.sqrt(2 * silent):.2g}",
        ),
    ]
