"""Tells sites that refuse by their policies from sites that are gone."""

from collections.abc import Mapping

from lepton_common.errors import (
    BudgetSpent,
    ConsentRefused,
    PolicyViolation,
    SitesRefused,
    UpdateAlreadySpent,
)

REFUSALS = {error.__name__ for error in (BudgetSpent, ConsentRefused, PolicyViolation)}


def refusal(round_: int, failed: Mapping[str, str]) -> SitesRefused | None:
    """Returns what ended a round if all who failed refused it; None if any failed otherwise.

    Args:
        round_: the round.
        failed: error names, by site.
    """
    if not failed:
        return None
    if round_ == 1 and set(failed.values()) == {UpdateAlreadySpent.__name__}:
        return SitesRefused(
            "Round 1: all sites have trained on these very weights before, in another run, and two "
            "sums over different sites would tell single updates apart. Set another seed."
        )
    if not set(failed.values()) <= REFUSALS:
        return None
    named = ", ".join(f"{site} ({name})" for site, name in list(failed.items())[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    return SitesRefused(
        f"Round {round_}: what the run asks is outside what the sites allow: {named}{more}. Each "
        "site's errors.log says why; ask for less (privacy.epsilon, rounds, clipping), or ask "
        "their operators. Rounds that were finished are kept, and no resume will help."
    )
