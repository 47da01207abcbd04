"""One row of a conformance report, and how chance decides whether it passes."""

from dataclasses import dataclass

from scipy import stats

# Of each check that chance can fail: thirty of them cry wolf in one audit of thirty thousand.
FALSE_ALARM = 1e-6


@dataclass(frozen=True)
class Check:
    """One promise, held against what was measured.

    Attributes:
        name: what is promised.
        passed: whether it was kept.
        measured: what was found.
        expected: what a faithful mechanism shows.
    """

    name: str
    passed: bool
    measured: str
    expected: str


def by_chance(name: str, p_value: float, measured: str, expected: str) -> Check:
    """Returns a check that fails if a faithful mechanism would show this once in a million."""
    return Check(name, p_value >= FALSE_ALARM, f"{measured} (p {p_value:.1g})", expected)


def two_sided_chi_square(statistic: float, freedom: int) -> float:
    """Returns the chance of a chi-square value as far out as this one, on either side."""
    law = stats.chi2(freedom)
    return float(min(1.0, 2 * min(law.sf(statistic), law.cdf(statistic))))


def two_sided_normal(z: float) -> float:
    """Returns the chance of a standard normal value as far out as this one."""
    return float(2 * stats.norm.sf(abs(z)))


def binomial(successes: int, trials: int, rate: float) -> float:
    """Returns the chance of a count as unlikely as this one, exactly."""
    return float(stats.binomtest(successes, trials, rate).pvalue)
