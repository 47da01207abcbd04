"""The bounds a site sets on what may be asked of it."""

from typing import Literal

from lepton_common.models.bases import without_base
from lepton_common.models.packaged import any_version
from lepton_common.models.tree_form import any_form
from lepton_common.statistics import Bins
from lepton_common.strict import (
    Count,
    Fraction,
    ModelName,
    Name,
    Natural,
    NotNegative,
    OpenFraction,
    Positive,
    record,
)


@record
class StatisticsRules:
    """What a site answers where statistics are asked; they always leave with DP.

    Attributes:
        max_epsilon: largest epsilon of one run of statistics, beside all other budgets.
        min_cohort: fewest sites that are asked together, and in a masked sum.
        max_bins: most bins of a histogram.
    """

    max_epsilon: Positive
    min_cohort: Count
    max_bins: Bins


@record
class SitePolicy:
    """A site's own policy; a request outside it is refused before any data is read.

    Attributes:
        allow_without_dp: whether the site trains without differential privacy.
        allow_without_secagg: whether updates may leave one by one, readable for the server. What
            leaves with neither is unprotected, and red in every report.
        colluders: sites of the whole roster that may collude with the server without learning
            more than sums; None: a third of the roster, (n - 1) / 3.
        max_epsilon: total budget of the people in the site's data, over all runs.
        max_epsilon_per_run: budget of any one run; None: as the total.
        max_epsilon_per_period: budget of any ``period_days`` days; None: as the total.
        period_days: length of a period.
        max_delta: largest delta a run may ask for.
        min_noise_multiplier: smallest noise multiplier.
        min_own_noise_multiplier: smallest noise that the site adds itself, over the clipping norm;
            where noise is shared, it is what is left if secure aggregation were broken.
        min_clipping_norm: smallest clipping norm: the shorter a gradient is clipped, the more a
            rounding error counts.
        max_clipping_norm: largest clipping norm.
        max_batch_size: most records held in memory at once in private training, so that running
            out of memory cannot tell how many were sampled.
        min_cohort: smallest cohort the site takes part in, and fewest sites in a masked sum.
        max_weight_share: largest share of a masked sum's public weight that may be the site's
            own, once the heaviest others, as many as may collude, are left out.
        devices: kinds of device that private work may use; on ``mps`` there is no float64, so what
            is proven of rounding does not hold there.
        tasks: tasks the site serves; None: all in its catalog.
        models: models the site trains, by name, or by their whole list of layers; of a package
            with the wheel's digest, or without: ``wheel.PACKAGE.MODEL``; trees with their numbers,
            or as ``boosted_trees``; of a model that begins from a base (see `models.bases`) its own
            name, or the whole one; None: all.
        statistics: which statistics the site answers; None: none.
    """

    allow_without_dp: bool
    allow_without_secagg: bool
    colluders: Natural | None
    max_epsilon: Positive
    max_epsilon_per_run: Positive | None
    max_epsilon_per_period: Positive | None
    period_days: Count
    max_delta: OpenFraction
    min_noise_multiplier: NotNegative
    min_own_noise_multiplier: NotNegative
    min_clipping_norm: Positive
    max_clipping_norm: Positive
    max_batch_size: Count
    min_cohort: Count
    max_weight_share: Fraction
    devices: list[Literal["cpu", "cuda", "mps"]]
    tasks: list[Name] | None
    models: list[ModelName] | None
    statistics: StatisticsRules | None = None

    def trains(self, model: str) -> bool:
        """Says whether a model is among those that the site trains."""
        # A base is weights, as each round's model is: who allows a model has allowed any.
        own = without_base(model)
        names = {model, own, any_version(own), any_form(own)}
        return self.models is None or bool(names & set(self.models))
