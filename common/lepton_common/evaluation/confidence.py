"""How far a metric can be trusted over seeds, and how evenly it is spread over sites."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from lepton_common.evaluation.direction import lower_is_better
from lepton_common.evaluation.inputs import require

_TENTHS_FROM = 20  # sites; of fewer a tenth is one or two


@dataclass(frozen=True)
class OverSeeds:
    """A metric over runs that differ in their seed alone.

    Attributes:
        count: runs.
        mean: over them.
        sd: standard deviation of the sample; None with one run.
        low: lower end of the confidence interval of the mean; None with one run.
        high: upper end.
        level: confidence of the interval.
    """

    count: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None
    level: float


def over_seeds(values: Sequence[float], level: float = 0.95) -> OverSeeds:
    """Returns mean, standard deviation and Student's t interval of one metric of some runs.

    The interval says where the mean over all seeds lies, if values are about normal. It does not
    hold what another test set would change.

    Args:
        values: the metric of each run, finite; one or more.
        level: confidence, in (0, 1).

    Raises:
        SettingsError: no values, one that is not finite, or a level out of bounds.
    """
    require(
        len(values) > 0 and all(map(math.isfinite, values)),
        "A confidence interval is of one finite value or more.",
    )
    require(0.0 < level < 1.0, f"A confidence lies between 0 and 1, not {level}.")
    mean = float(np.mean(values))
    if len(values) == 1:
        return OverSeeds(1, mean, None, None, None, level)
    sd = float(np.std(values, ddof=1))
    reach = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * sd / math.sqrt(len(values))
    return OverSeeds(len(values), mean, sd, mean - reach, mean + reach, level)


@dataclass(frozen=True)
class OverSites:
    """How even a metric is over sites.

    Attributes:
        worst_site: name of the site with the worst value; of equal ones the first.
        worst: its value: the lowest, or the highest of a metric of which less is better.
        best_site: name of the site with the best value.
        best: its value.
        spread: distance of best and worst, 0 or more.
        mean: over sites, a small one counting as much as a large one.
        sd: standard deviation over these sites (of the population: they are all there are).
        worst_tenth: mean over the worst tenth of the sites (as Li et al. 2020, Fair resource
            allocation in federated learning, have it); None where there are fewer than 20.
    """

    worst_site: str
    worst: float
    best_site: str
    best: float
    spread: float
    mean: float
    sd: float
    worst_tenth: float | None


def over_sites(metric: str, values: Mapping[str, float]) -> OverSites:
    """Returns the fairness of one metric over sites.

    Args:
        metric: its name, which says whether less is better.
        values: of each site that has the metric; one or more.

    Raises:
        SettingsError: no values.
    """
    require(len(values) > 0, f"The spread of {metric} is of one site or more.")
    lowest, highest = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
    worst, best = (highest, lowest) if lower_is_better(metric) else (lowest, highest)
    each = np.sort(list(values.values()))
    tenth = (each[::-1] if lower_is_better(metric) else each)[: len(each) // 10]
    return OverSites(
        worst_site=worst,
        worst=values[worst],
        best_site=best,
        best=values[best],
        spread=abs(values[best] - values[worst]),
        mean=float(each.mean()),
        sd=float(each.std()),
        worst_tenth=float(tenth.mean()) if len(each) >= _TENTHS_FROM else None,
    )
