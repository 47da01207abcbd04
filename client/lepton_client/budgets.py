"""One budget of epsilon: whether a round fits into what is left of it, and else which would."""

from collections.abc import Callable
from dataclasses import replace

from lepton_common.errors import BudgetSpent
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import Event
from lepton_common.privacy.plan import PrivacyPlan, for_people


def check_budget(what: str, most: float, events: tuple[Event, ...], plan: PrivacyPlan) -> None:
    """Checks that one more round of a plan keeps a budget.

    Args:
        what: the budget's name, for the message.
        most: its epsilon.
        events: what counts against it already.
        plan: of the round.

    Raises:
        BudgetSpent: it does not; with what is left, and what would fit.
    """

    def after(next_plan: PrivacyPlan) -> float:
        together = (*events, for_people(plan.unit, next_plan.event()))
        return epsilon(together, plan.delta, enough=most)

    if after(plan) <= most:  # NaN must not pass
        return
    spent = epsilon(events, plan.delta)
    raise BudgetSpent(
        f"This round would bring the data to epsilon {after(plan):.3f} of at most {most} {what}; "
        f"{spent:.3f} is spent, {max(most - spent, 0):.3f} is left. {_what_fits(plan, most, after)}"
    )


def _what_fits(plan: PrivacyPlan, most: float, after: Callable[[PrivacyPlan], float]) -> str:
    """Returns which noise would let one more such round in."""
    sigma = plan.noise_multiplier
    for factor in (1.5, 2, 3, 5, 10, 20, 50, 100):
        if after(replace(plan, noise_multiplier=sigma * factor)) <= most:
            return (
                f"This round would fit with a noise multiplier of {sigma * factor:.3g} instead of "
                f"{sigma:.3g}; ask 'lepton privacy plan' about a whole run."
            )
    return "No such round fits any more."
