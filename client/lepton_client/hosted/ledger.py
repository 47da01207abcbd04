"""What each site of a host has spent: reserved before compute, on record, never refunded.

The charges are records of the host's one log. A run has a host of its own, whose sites have no
earlier data and no other runs, so that what a site has spent is how often it was charged.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from lepton_client.budgets import check_budget
from lepton_client.ledger import Charge
from lepton_common.audit import AuditLog
from lepton_common.chain import ChainRecord
from lepton_common.errors import BudgetSpent, ConsentRefused, DoorRefused, LedgerRolledBack
from lepton_common.messages import TrainRequest
from lepton_common.policy import SitePolicy
from lepton_common.privacy.events import read_event
from lepton_common.privacy.plan import PrivacyPlan


class HostLedger:
    """The privacy ledger of all sites of a host."""

    def __init__(self, audit: AuditLog, policy: SitePolicy) -> None:
        """Reads what was charged before from the log."""
        self._audit, self._policy, self._lock = audit, policy, threading.Lock()
        self._rounds: Counter[str] = Counter()
        self._plans: dict[str, str] = {}
        self._open: dict[str, tuple[Charge, frozenset[str]]] = {}
        for record in audit.records:
            if record.kind == "charge":
                self._count(record)

    @property
    def head(self) -> str:
        """The newest hash of the log that the charges are in."""
        return self._audit.head

    @property
    def records(self) -> list[ChainRecord]:
        """All records of that log."""
        return self._audit.records

    def check_heads(self, seen: Iterable[str]) -> None:
        """Checks that the log still has the entries that a server has seen.

        Raises:
            LedgerRolledBack: it lacks one.
        """
        missing = set(seen)
        for record in reversed(self._audit.records):
            if not missing:
                return
            missing.discard(record.hash)
        if missing:
            raise LedgerRolledBack(
                "The server has seen an entry that the host's log does not hold: an older copy was "
                "put back. Restore the newest one, or start a new run."
            )

    def reserve(
        self, sites: Sequence[str], plans: Mapping[str, PrivacyPlan], request: TrainRequest
    ) -> tuple[Charge | None, dict[str, BudgetSpent | ConsentRefused]]:
        """Charges one round to each site that has room for it; on disk when this returns.

        Args:
            sites: their names.
            plans: of each site; of one kind, and unlike in their denominators only.
            request: what is asked.

        Returns:
            The charge, which covers one release of all who are in it, and why others are not;
            no charge where nobody is.
        """
        refused: dict[str, BudgetSpent | ConsentRefused] = {}
        with self._lock:
            found: dict[tuple[int, str | None, str], BudgetSpent | ConsentRefused | None] = {}
            for site in sites:
                # Sites with the same past and plan have the same room left.
                past = (self._rounds[site], self._plans.get(site), plans[site].digest)
                if past not in found:
                    found[past] = self._fault(past, plans[site], request)
                if error := found[past]:
                    refused[site] = error
            charged = [site for site in sites if site not in refused]
            if not charged:
                return None, refused
            plan = plans[charged[0]]
            record = self._audit.append(
                "charge",
                {
                    "run": request.run,
                    "round": request.round,
                    "model": request.model_digest,
                    "plans": [plans[site].digest for site in charged],
                    "sites": charged,
                    "unit": plan.unit,
                    "delta": plan.delta,
                    "event": plan.event().record(),
                },
            )
            charge = self._count(record)
            self._open[charge.id] = charge, frozenset(charged)
            return charge, refused

    def redeem(self, charge: Charge, sites: Sequence[str]) -> None:
        """Uses up a charge for one release.

        Raises:
            DoorRefused: it was not charged since the process began, covered a release already, or
                does not cover all of the sites.
        """
        with self._lock:
            known, charged = self._open.pop(charge.id, (None, frozenset[str]()))
        if known != charge:
            raise DoorRefused("A charge covers one release only, and this one is used up.")
        if not charged.issuperset(sites):
            raise DoorRefused("A site's update may leave only under a charge to that site.")

    def rounds(self, site: str) -> int:
        """Returns how many rounds a site was charged."""
        return self._rounds[site]

    def _fault(
        self, past: tuple[int, str | None, str], plan: PrivacyPlan, request: TrainRequest
    ) -> BudgetSpent | ConsentRefused | None:
        """Returns why one more round of a plan does not fit after some; None where it does."""
        taken, began, digest = past
        if began not in (None, digest):
            return ConsentRefused(f"The run {request.run} began under another privacy plan.")
        if (taken + 1) * plan.steps_per_round > plan.max_steps:
            return BudgetSpent(
                f"The plan covers {plan.max_steps} steps and {taken * plan.steps_per_round} are "
                "taken; another round would not be accounted for."
            )
        policy = self._policy
        budgets = {
            "in all": policy.max_epsilon,
            "in this run": policy.max_epsilon_per_run,
            f"in {policy.period_days} days": policy.max_epsilon_per_period,
        }
        spent = (plan.event(taken),) if taken else ()
        try:
            for what, most in budgets.items():
                if most is not None:
                    check_budget(what, most, spent, plan)
        except BudgetSpent as error:
            return error
        return None

    def _count(self, record: ChainRecord) -> Charge:
        body = record.body
        self._rounds.update(body["sites"])
        self._plans |= zip(body["sites"], body["plans"], strict=True)
        return Charge(
            id=record.hash,
            run=str(body["run"]),
            plan=str(body["plans"][0]),
            unit=str(body["unit"]),
            version="",
            carried=False,
            time=record.time,
            event=read_event(body["event"]),
        )
