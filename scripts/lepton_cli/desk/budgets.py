"""What is spent and left of a site's privacy budgets, and what a run would take of them."""

from dataclasses import dataclass

from lepton_cli.desk.folder import Desk
from lepton_client.ledger import StudyBudget, epsilon_of
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import read_event
from lepton_common.privacy.ledger_file import LedgerContents
from lepton_common.privacy.plan import PrivacyPlan, for_people


@dataclass(frozen=True)
class Spent:
    """What the people in a version of the data have spent.

    Attributes:
        data: the operator's name for the data.
        version: digest of its people.
        charges: how many count for them.
        epsilon: spent over all of them.
        delta: the smallest that was charged at.
    """

    data: str
    version: str
    charges: int
    epsilon: float
    delta: float


@dataclass(frozen=True)
class Budget:
    """One budget of a site.

    Attributes:
        what: whose, such as ``in all``.
        most: its epsilon.
        spent: of it, by now.
        after: what would be spent once a run has ended; None where none is looked at.
    """

    what: str
    most: float
    spent: float
    after: float | None = None

    @property
    def left(self) -> float:
        """What is left of it now."""
        return max(self.most - self.spent, 0.0)

    @property
    def holds(self) -> bool:
        """Whether the run fits."""
        return self.after is None or self.after <= self.most  # NaN does not


def spent_by_data(contents: LedgerContents) -> list[Spent]:
    """Returns what the people in each version of the data have spent, by a ledger's entries."""
    names = {r.body["version"]: r.body["dataset"] for r in contents.records if r.kind == "data"}
    found = []
    for version, name in names.items():
        mine = contents.charges_to(version)
        delta = min((float(charge.body["delta"]) for charge in mine), default=1e-5)
        events = tuple(
            for_people(str(charge.body["unit"]), read_event(charge.body["event"]))
            for charge in mine
        )
        spent = epsilon(events, delta, fine=True)
        found.append(Spent(str(name), str(version), len(mine), spent, delta))
    return found


def budgets(desk: Desk) -> list[Budget]:
    """Returns the budgets that hold whatever the run, at the largest delta that the site allows."""
    policy, ledger = desk.file.policy, desk.ledger
    found = ledger.budgets("", policy)
    return [
        Budget(what, most, epsilon_of(charges, policy.max_delta))
        for what, (most, charges) in found.items()
        if what != "in this run"
    ]


def budgets_of_run(
    desk: Desk, run: str, plan: PrivacyPlan, study: StudyBudget | None, rounds: int
) -> list[Budget]:
    """Returns the budgets that a run draws on, before and after so many more rounds of it."""
    found = []
    more = [for_people(plan.unit, plan.event(rounds))] if rounds else []
    for what, (most, charges) in desk.ledger.budgets(run, desk.file.policy, study).items():
        before = epsilon_of(charges, plan.delta)
        found.append(Budget(what, most, before, epsilon_of(charges, plan.delta, *more)))
    return found
