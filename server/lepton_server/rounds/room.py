"""Whether a sum over people has room in the whole numbers that secure aggregation adds up."""

from collections.abc import Iterable

from lepton_common.errors import PlanError
from lepton_common.messages import SiteFacts
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.summing import most_of_a_cell

_RING = 2.0**31  # beyond it a sum in whole numbers of 32 bits begins anew


def check_room(plan: PrivacyPlan, cohort: Iterable[SiteFacts], share: float) -> None:
    """Checks that no cell of a sum with shared noise can be larger than it can be told.

    Args:
        plan: of each site's part.
        cohort: the sites.
        share: most that one person adds to a cell, in clipping norms.

    Raises:
        PlanError: the people may be more than there is room for.
    """
    most = sum(most_of_a_cell(facts.public_size) for facts in cohort)
    if most * plan.clipping_norm * share > _RING * plan.grid:
        raise PlanError(
            f"A sum over up to {most:,.0f} people does not fit into whole numbers of 32 bits "
            "beside so little noise: lower privacy.epsilon, or ask fewer sites (federation.cohort)."
        )
