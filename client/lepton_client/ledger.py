"""What the site's data has spent: reserve before compute, one release per charge, no refund.

Charges are records in the site's audit log, so they are signed, chained, on disk before any
record is read, and outlive crashes and restarts. A charge without a release (a crash in
between) stays spent.
"""

from dataclasses import dataclass
from typing import Any

from lepton_common.audit import AuditLog
from lepton_common.chain import ChainRecord
from lepton_common.errors import BudgetSpent, ConsentRefused, DoorRefused
from lepton_common.messages import TrainRequest
from lepton_common.policy import SitePolicy
from lepton_common.privacy.accounting import GaussianEvent, epsilon
from lepton_common.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class Charge:
    """One reserved mechanism.

    Attributes:
        id: hash of its audit record.
        run: name of the run it was charged to.
        plan: digest of the plan it belongs to.
        event: the mechanism.
    """

    id: str
    run: str
    plan: str
    event: GaussianEvent


class Ledger:
    """The site's privacy ledger, kept in its audit log."""

    def __init__(self, audit: AuditLog) -> None:
        self._audit = audit
        self._charges = [_charge(record) for record in audit.records if record.kind == "charge"]
        self._released = {
            str(record.body["charge"])
            for record in audit.records
            if record.kind == "release" and record.body["charge"] is not None
        }

    def reserve(self, plan: PrivacyPlan, request: TrainRequest, policy: SitePolicy) -> Charge:
        """Charges one round of ``plan``; the charge is on disk when this returns.

        Raises:
            ConsentRefused: the run changed its plan.
            BudgetSpent: the plan's steps or the policy's epsilon would be exceeded.
        """
        event = plan.event()
        if any(c.run == request.run and c.plan != plan.digest for c in self._charges):
            raise ConsentRefused(f"The run {request.run} began under another privacy plan.")
        taken = self.steps(request.run)
        if taken + event.steps > plan.max_steps:
            raise BudgetSpent(
                f"The plan covers {plan.max_steps} steps and {taken} are taken; "
                f"another {event.steps} would not be accounted for."
            )
        after = epsilon((*self._events(), event), plan.delta)
        if not after <= policy.max_epsilon:  # NaN must not pass
            raise BudgetSpent(
                f"This round would bring the data to epsilon {after:.3f} of at most "
                f"{policy.max_epsilon}; {self.epsilon(plan.delta):.3f} is spent."
            )
        record = self._audit.append(
            "charge",
            {
                "run": request.run,
                "round": request.round,
                "model": request.model_digest,
                "plan": plan.digest,
                "unit": plan.unit,
                "delta": plan.delta,
                "event": event.record(),
            },
        )
        charge = _charge(record)
        self._charges.append(charge)
        return charge

    def redeem(self, charge: Charge) -> None:
        """Uses up a charge for one release.

        Raises:
            DoorRefused: it was not charged here, or already covered a release.
        """
        if charge not in self._charges or charge.id in self._released:
            raise DoorRefused("A charge covers one release only, and this one is used up.")
        self._released.add(charge.id)

    def steps(self, run: str) -> int:
        """Returns how many private steps ``run`` has been charged."""
        return sum(charge.event.steps for charge in self._charges if charge.run == run)

    def epsilon(self, delta: float) -> float:
        """Returns what the data has spent at ``delta``, over all runs."""
        return epsilon(self._events(), delta)

    def _events(self) -> tuple[GaussianEvent, ...]:
        # Merged, so that the accountant's memory of past answers is hit by every site and round.
        steps: dict[tuple[float, float], int] = {}
        for charge in self._charges:
            key = (charge.event.sample_rate, charge.event.noise_multiplier)
            steps[key] = steps.get(key, 0) + charge.event.steps
        return tuple(GaussianEvent(q, sigma, count) for (q, sigma), count in sorted(steps.items()))


def _charge(record: ChainRecord) -> Charge:
    event: dict[str, Any] = record.body["event"]
    body = record.body
    return Charge(record.hash, str(body["run"]), str(body["plan"]), GaussianEvent(**event))
