"""Whether noise and batches follow their laws, as seen in what our training releases.

Noise is what a site without records releases. Batches are read off the releases of a site of
canaries under next to no noise: each canary's weight tells whether it was sampled.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special, stats

from lepton_cli.privacy_audit.canaries import CPU, TASK, CanarySite, Values, plain_recipe, resident
from lepton_cli.privacy_audit.checks import (
    Check,
    binomial,
    by_chance,
    two_sided_chi_square,
    two_sided_normal,
)
from lepton_client.training.conformance import OURS, Conformance
from lepton_client.training.private import train_private
from lepton_common.datasets.records import Records
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.integer_noise import skellam
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import SHARE_VARIANCE, PrivacyPlan

_WEIGHTS = 20_000  # of the model whose noise is looked at
_RELEASES = 10
_FAR = 3.5  # standard deviations; two hundred thousand draws have 93 beyond
_INTEGERS = 200_000
_CANARIES, _BATCHES = 512, 240
_RATE = 0.25
_QUIET = 1e-6  # a noise multiplier next to nothing


def audit_randomness(
    plan: PrivacyPlan,
    device: torch.device = CPU,
    advance: Callable[[], None] = lambda: None,
) -> list[Check]:
    """Returns checks of noise and sampling; a faithful mechanism fails each once in a million."""
    checks = [*_noise(plan, device), _seeds(plan, device)]
    advance()
    for variance in (4.0, SHARE_VARIANCE):
        checks += _integer_noise(variance)
    advance()
    checks += [
        *_batches(plan, device),
        *_steps_of_a_round(plan, device),
        _everyone(plan, device),
    ]
    advance()
    return checks


def _noise(plan: PrivacyPlan, device: torch.device) -> list[Check]:
    """Holds the noise of some releases of one step against N(0, 1), once it is scaled back."""
    draws = np.stack([_released_noise(plan, device) for _ in range(_RELEASES)])
    each = draws.ravel()
    count = len(each)
    squares, mean = float(np.square(each).sum()), float(each.mean())
    far = int((np.abs(each) > _FAR).sum())
    beyond = 2 * stats.norm.sf(_FAR)
    distance = stats.kstest(each, stats.norm.cdf)
    steps = _correlation(draws[:-1], draws[1:])
    neighbours = _correlation(draws[:, :-1], draws[:, 1:])
    deviation = (squares / count) ** 0.5
    return [
        by_chance(
            "noise: mean",
            two_sided_normal(mean * count**0.5),
            f"{mean:.2g} deviations",
            f"0 ± {count**-0.5:.2g}",
        ),
        by_chance(
            "noise: standard deviation",
            two_sided_chi_square(squares, count),
            f"{deviation:.5f} of the plan's",
            f"1 ± {(2 * count) ** -0.5:.2g}",
        ),
        by_chance(
            "noise: normal distribution (Kolmogorov and Smirnov)",
            float(distance.pvalue),
            f"distance {distance.statistic:.2g}",
            f"about {0.87 * count**-0.5:.2g}",
        ),
        by_chance(
            f"noise: tail beyond {_FAR} deviations",
            binomial(far, count, beyond),
            f"{far} of {count}",
            f"about {beyond * count:.0f}",
        ),
        by_chance(
            "noise: independent from step to step",
            _chance(steps, draws[:-1].size),
            f"correlation {steps:.2g}",
            f"0 ± {draws[:-1].size ** -0.5:.2g}",
        ),
        by_chance(
            "noise: independent from weight to weight",
            _chance(neighbours, draws[:, :-1].size),
            f"correlation {neighbours:.2g}",
            f"0 ± {draws[:, :-1].size ** -0.5:.2g}",
        ),
    ]


def _seeds(plan: PrivacyPlan, device: torch.device) -> Check:
    """Sets every seed there is to the same before two releases, whose noise must be unrelated."""
    draws = []
    with torch.random.fork_rng(devices=[]):
        before = np.random.get_state()  # noqa: NPY002 - the generator that a seed would reach
        try:
            for _ in range(2):
                torch.manual_seed(1)
                np.random.seed(1)  # noqa: NPY002
                draws.append(_released_noise(plan, device))
        finally:
            np.random.set_state(before)  # noqa: NPY002
    related = _correlation(*draws)
    return by_chance(
        "noise: deaf to torch.manual_seed and numpy.random.seed",
        _chance(related, len(draws[0])),
        f"correlation {related:.2g} under one seed",
        f"0 ± {len(draws[0]) ** -0.5:.2g}",
    )


def _released_noise(plan: PrivacyPlan, device: torch.device, steps: int = 1) -> Values:
    """Returns the release of a site without records, in deviations of one step's noise."""
    module = initial_model("logistic", (_WEIGHTS - 1,), 1, seed=0)
    model = resident(module, device)
    nobody = Records(torch.zeros(0, _WEIGHTS - 1), torch.zeros(0, dtype=torch.int64))
    noisy = replace(plan, shared=None, steps_per_round=steps, max_steps=max(steps, plan.max_steps))
    deviation = noisy.noise_multiplier * noisy.clipping_norm / noisy.denominator
    recipe, start = plain_recipe(1.0 / deviation), np.zeros(_WEIGHTS, dtype=np.float32)
    update = train_private(model, TASK, nobody, start, recipe, noisy, Conformance(OURS, 0.0))
    return update.astype(np.float64)


def _integer_noise(variance: float) -> list[Check]:
    """Holds Skellam noise against P(k) = exp(-v) I_|k|(v), in about a hundred bins."""
    draws = skellam(SecretRandom(), variance, _INTEGERS)
    reach = int(12 * variance**0.5) + 20
    support = np.arange(-reach, reach + 1)
    law = special.ive(np.abs(support), variance)
    cumulative = np.cumsum(law)
    edges = np.unique(np.searchsorted(cumulative, np.arange(1, 100) / 100))
    bins = np.searchsorted(support[edges], draws)  # a bin ends with its edge
    expected = _INTEGERS * np.diff(np.concatenate([[0.0], cumulative[edges], [1.0]]))
    observed = np.bincount(bins, minlength=len(expected))
    fit = stats.chisquare(observed, expected)
    # Of the mean of squares: E k⁴ = v + 3v², so its variance is (v + 2v²)/n.
    square = float(np.square(draws.astype(np.float64)).mean())
    spread = ((variance + 2 * variance**2) / _INTEGERS) ** 0.5
    return [
        by_chance(
            f"Skellam noise of variance {variance:.9g}: distribution",
            float(fit.pvalue),
            f"chi-square {fit.statistic:.0f}",
            f"about {len(expected) - 1}",
        ),
        by_chance(
            f"Skellam noise of variance {variance:.9g}: variance",
            two_sided_normal((square - variance) / spread),
            f"{square / variance:.5f} of the plan's",
            f"1 ± {spread / variance:.2g}",
        ),
    ]


def _batches(plan: PrivacyPlan, device: torch.device) -> list[Check]:
    """Samples batches of canaries, one a release, and holds them against Poisson sampling."""
    sampled = _sampled(plan, device, _RATE, _BATCHES, 1) == 1
    sizes, times = sampled.sum(axis=1), sampled.sum(axis=0)
    total, decisions = int(sampled.sum()), sampled.size
    again = int((sampled[::2] & sampled[1::2]).sum())
    spread = _RATE * (1 - _RATE)
    regular = float(np.square(sizes - _CANARIES * _RATE).sum() / (_CANARIES * spread))
    uneven = float(np.square(times - _BATCHES * _RATE).sum() / (_BATCHES * spread))
    pairs = decisions // 2
    return [
        by_chance(
            "sampling: rate",
            binomial(total, decisions, _RATE),
            f"{total / decisions:.4f}",
            f"{_RATE} ± {(spread / decisions) ** 0.5:.2g}",
        ),
        by_chance(
            "sampling: sizes of batches, so records independently",
            two_sided_chi_square(regular, _BATCHES),
            f"variance {regular / _BATCHES:.3f} of a binomial's",
            f"1 ± {(2 / _BATCHES) ** 0.5:.2g}",
        ),
        by_chance(
            "sampling: how often each record, so all alike",
            two_sided_chi_square(uneven, _CANARIES),
            f"variance {uneven / _CANARIES:.3f} of a binomial's",
            f"1 ± {(2 / _CANARIES) ** 0.5:.2g}",
        ),
        by_chance(
            "sampling: independent from round to round",
            binomial(again, pairs, _RATE**2),
            f"{again / pairs:.4f} in both of two",
            f"{_RATE**2} ± {(_RATE**2 * (1 - _RATE**2) / pairs) ** 0.5:.2g}",
        ),
    ]


def _steps_of_a_round(plan: PrivacyPlan, device: torch.device) -> list[Check]:
    """Takes several steps before a release: batches and noise must be fresh in each."""
    steps = 16
    times = _sampled(plan, device, _RATE, 4, steps).ravel()
    uneven = float(np.square(times - steps * _RATE).sum() / (steps * _RATE * (1 - _RATE)))
    noise = _released_noise(plan, device, steps)
    louder = float(np.square(noise).sum() / steps)
    return [
        by_chance(
            f"{what}: fresh in each of {steps} steps of a round",
            two_sided_chi_square(statistic, count),
            f"variance {statistic / count:.3f} of independent ones'",
            f"1 ± {(2 / count) ** 0.5:.2g}",
        )
        for what, statistic, count in (
            ("sampling", uneven, len(times)),
            ("noise", louder, len(noise)),
        )
    ]


def _everyone(plan: PrivacyPlan, device: torch.device) -> Check:
    """At a rate of 1 every record is part of every step, exactly once."""
    times = _sampled(plan, device, 1.0, 4, 2)
    return Check(
        "sampling: at a rate of 1, everyone in each step",
        bool((times == 2).all()),
        f"{times.min():.0f} to {times.max():.0f} times in 2 steps",
        "2",
    )


def _sampled(
    plan: PrivacyPlan, device: torch.device, rate: float, releases: int, steps: int
) -> NDArray[np.int64]:
    """Returns how often each canary was part of a release, shape [releases, canaries]."""
    quiet = replace(plan, sample_rate=rate, noise_multiplier=_QUIET, shared=None,
                    steps_per_round=steps, max_steps=max(steps, plan.max_steps))  # fmt: skip
    site = CanarySite(quiet, _CANARIES, np.arange(_CANARIES), releases, device)
    shown = np.stack([site.release() for _ in range(releases)])
    return np.rint(shown).astype(np.int64)


def _correlation(first: Values, second: Values) -> float:
    """Returns the correlation of values whose mean should be 0."""
    scale = float(np.sqrt(np.square(first).sum() * np.square(second).sum()))
    return float((first * second).sum() / scale) if scale else 0.0


def _chance(correlation: float, count: int) -> float:
    return two_sided_normal(correlation * count**0.5)
