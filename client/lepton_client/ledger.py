"""What the people in a site's data have spent: reserve before compute, commit, never refund.

Charges are signed entries in the site's ledger file, on disk before any record is read for them.
A charge without a release (a crash in between) stays spent. All charges count, whoever is in the
data: what is left must not tell whether somebody was in earlier data too. Only the operator makes a
fresh start, for data that shares nobody with all that was used before.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lepton_client.budgets import check_budget
from lepton_common.chain import GENESIS, ChainRecord
from lepton_common.errors import (
    BudgetSpent,
    ClockBehind,
    ConsentRefused,
    DoorRefused,
    LedgerRolledBack,
    PeopleKnown,
)
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import TrainRequest
from lepton_common.policy import SitePolicy
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import Event, merge, read_event
from lepton_common.privacy.ledger_file import CARRIED, LedgerContents, LedgerFile, version_of
from lepton_common.privacy.plan import WHOLE_SITE, PrivacyPlan, for_people

SUCCESSION = "succession"  # the audit log's word on an earlier key's charges
_DAY_S = 86400


@dataclass(frozen=True)
class Charge:
    """One reserved mechanism.

    Attributes:
        id: hash of its entry.
        run: name of the run it was charged to.
        plan: digest of the plan it belongs to.
        unit: what was protected as one.
        version: the version of the data.
        carried: whether it comes from the ledger of an earlier key.
        time: when, in seconds since 1970.
        event: the mechanism.
    """

    id: str
    run: str
    plan: str
    unit: str
    version: str
    carried: bool
    time: float
    event: Event


@dataclass(frozen=True)
class StudyBudget:
    """What a study may spend.

    Attributes:
        name: of the study.
        max_epsilon: over all its runs.
        runs: their names.
    """

    name: str
    max_epsilon: float
    runs: frozenset[str]


class Ledger:
    """A site's privacy ledger."""

    def __init__(self, path: Path, key: SigningKey, dataset: str) -> None:
        """Opens the ledger.

        Args:
            path: its file; it need not exist.
            key: the site's key.
            dataset: the operator's name for the data.

        Raises:
            LedgerInvalid: the file does not verify.
        """
        self._file, self._dataset = LedgerFile(path, key), dataset
        self._read()

    def _read(self) -> None:
        records = self._file.contents.records
        self._charges = [_charge(record) for record in self._file.contents.charges]
        self._released = {str(r.body["charge"]) for r in records if r.kind == "release"}
        # The data that was used last; what is there now is looked at only after the first check.
        versions = [
            str(record.body["version"])
            for record in records
            if record.kind == "data" and record.body["dataset"] == self._dataset
        ]
        self._version = versions[-1] if versions else ""

    @property
    def head(self) -> str:
        """The hash of the newest entry."""
        return self._file.contents.head

    @property
    def records(self) -> list[ChainRecord]:
        """All entries, the oldest first."""
        return self._file.contents.records

    def check_head(self, seen: str | None) -> None:
        """Checks that the ledger still has the newest entry that a server has seen.

        Raises:
            LedgerRolledBack: it has not.
        """
        hashes = {record.hash for record in self._file.contents.records}
        if seen not in (None, GENESIS, *hashes):
            raise LedgerRolledBack(
                "The server has seen an entry that the privacy ledger does not hold: an older copy "
                "was put back. Restore the newest one, or retire this site's data."
            )

    def refresh(self) -> None:
        """Reads what the operator's commands have appended since.

        Raises:
            LedgerInvalid: the file does not verify any more.
        """
        if self._file.refresh():
            self._read()

    def use_data(self, unit: str, units: frozenset[bytes]) -> None:
        """Puts the data that a round is about to use on record.

        Raises:
            PeopleKnown: it holds somebody of before the last fresh start, which is void from here
                on; may be told to the operator alone.
        """
        self._version = self._file.add_version(self._dataset, unit, units)
        fresh = self._last_fresh()
        if fresh is not None and self._meets_earlier(fresh):
            self._file.append("void", {"fresh": fresh.hash, "version": self._version})
            raise PeopleKnown(
                "The data holds somebody of before the last fresh start, or protects another unit. "
                "That start is void: all that was ever charged counts again."
            )

    def known(self, units: frozenset[bytes]) -> int:
        """Returns how many units were in data that is on record; for the operator alone."""
        return len(units & self._file.known_units())

    def start_afresh(self, unit: str, units: frozenset[bytes]) -> None:
        """Lets what was charged until now count no more, for data of new people.

        Raises:
            PeopleKnown: somebody is on record already, or earlier data protects another unit, by
                which nobody would be known again.
        """
        if known := self.known(units):
            raise PeopleKnown(
                f"{known} of the data's {len(units)} units ({unit}) are on record: what was spent "
                "on them stays spent."
            )
        if others := {one for one, _ in self._versions().values()} - {unit}:
            raise PeopleKnown(
                f"Earlier data protects {', '.join(sorted(others))} and this one {unit}, so its "
                "people would not be known again."
            )
        body = {"dataset": self._dataset, "unit": unit, "version": version_of(units)}
        self._file.append("fresh", body)
        self._version = self._file.add_version(self._dataset, unit, units)

    def check(
        self,
        plan: PrivacyPlan,
        request: TrainRequest,
        policy: SitePolicy,
        study: StudyBudget | None = None,
    ) -> None:
        """Checks whether one more round of ``plan`` fits all budgets; reads no record.

        Raises:
            ConsentRefused: the run changed its plan.
            BudgetSpent: the plan's steps or one of the policy's budgets would be exceeded.
            ClockBehind: there is a budget for a period, and the clock was set back.
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
        for what, (most, charges) in self.budgets(request.run, policy, study).items():
            check_budget(what, most, _events(charges), plan)

    def budgets(
        self, run: str, policy: SitePolicy, study: StudyBudget | None = None
    ) -> dict[str, tuple[float, list[Charge]]]:
        """Returns the budgets that a run draws on: their epsilon, and what is charged to them.

        Raises:
            ClockBehind: there is a budget for a period, and the clock was set back.
        """
        charges = self._counted()
        since = self._now(policy) - policy.period_days * _DAY_S
        budgets = {
            "in all": (policy.max_epsilon, charges),
            "in this run": (policy.max_epsilon_per_run, [c for c in charges if c.run == run]),
            f"in {policy.period_days} days": (
                policy.max_epsilon_per_period,
                [charge for charge in charges if charge.time > since],
            ),
        }
        if study is not None:
            of_study = [charge for charge in charges if charge.run in study.runs]
            budgets[f"in the study {study.name}"] = (study.max_epsilon, of_study)
        return {what: (most, of) for what, (most, of) in budgets.items() if most is not None}

    def reserve(
        self,
        plan: PrivacyPlan,
        request: TrainRequest,
        policy: SitePolicy,
        study: StudyBudget | None = None,
    ) -> Charge:
        """Charges one round of ``plan``; the charge is on disk when this returns.

        Raises:
            ConsentRefused, BudgetSpent: see `check`.
            LedgerInvalid, DiskFull: the charge could not be written.
        """
        self.check(plan, request, policy, study)
        record = self._file.append(
            "charge",
            {
                "run": request.run,
                "round": request.round,
                "model": request.model_digest,
                "plan": plan.digest,
                "unit": plan.unit,
                "delta": plan.delta,
                "event": plan.event().record(),
                "shared": asdict(plan.shared) if plan.shared else None,
                "version": self._version,
            },
        )
        charge = _charge(record)
        self._charges.append(charge)
        return charge

    def redeem(self, charge: Charge) -> None:
        """Uses up a charge for one release; that is on disk when this returns.

        Raises:
            DoorRefused: it was not charged here, or already covered a release.
        """
        if charge not in self._charges or charge.carried or charge.id in self._released:
            raise DoorRefused("A charge covers one release only, and this one is used up.")
        self._file.append("release", {"charge": charge.id})
        self._released.add(charge.id)

    def steps(self, run: str) -> int:
        """Returns how many private steps ``run`` has been charged."""
        return sum(charge.event.steps for charge in self._charges if charge.run == run)

    def epsilon(self, delta: float) -> float:
        """Returns what counts against the budgets at ``delta``, over all runs."""
        return epsilon_of(self._counted(), delta)

    def epsilon_of_run(self, run: str, delta: float) -> float:
        """Returns what a run has spent at ``delta``, whoever is in the data: public."""
        events = [charge.event for charge in self._charges if charge.run == run]
        return epsilon(tuple(merge(events)), delta)

    def check_charged(self, said: list[ChainRecord]) -> None:
        """Checks that the ledger holds the charges that the site's audit log tells of.

        Raises:
            LedgerRolledBack: it lacks one.
        """
        check_all_held(said, self._file.contents)

    def _now(self, policy: SitePolicy) -> float:
        now = time.time()
        latest = max((record.time for record in self._file.contents.records), default=now)
        if policy.max_epsilon_per_period is not None and now < latest - _DAY_S:
            raise ClockBehind(
                "The clock is more than a day behind the newest entry of the privacy ledger, and "
                "the policy has a budget for a period. Set the clock right."
            )
        return now

    def _counted(self) -> list[Charge]:
        """The charges since the last fresh start that holds, and all to anybody and everybody."""
        records = self._file.contents.records
        fresh = self._last_fresh()
        if fresh is None or self._meets_earlier(fresh):
            return self._charges
        since = {record.hash for record in records[fresh.sequence :]}
        # Nobody can tell any more whom an earlier key's charges were for.
        return [c for c in self._charges if c.id in since or c.carried or c.unit == WHOLE_SITE]

    def _last_fresh(self) -> ChainRecord | None:
        """The last fresh start; None where one is void, for whoever was wrong once may be again."""
        starts = [r for r in self._file.contents.records if r.kind in ("fresh", "void")]
        return starts[-1] if starts and starts[-1].kind == "fresh" else None

    def _meets_earlier(self, fresh: ChainRecord) -> bool:
        """Whether data on record since a fresh start shares anybody with data before it."""
        versions = self._versions()
        earlier = {version for version, (_, at) in versions.items() if at < fresh.sequence}
        units = {versions[version][0] for version in earlier}
        return (
            any(
                (earlier & self._file.contents.overlaps[version]) or units - {unit}
                for version, (unit, at) in versions.items()
                if at > fresh.sequence
            )
            or self._version in earlier
        )

    def _versions(self) -> dict[str, tuple[str, int]]:
        """The versions of the data: what one unit of each is, and the number of its first entry."""
        return {
            str(record.body["version"]): (str(record.body["unit"]), record.sequence)
            for record in reversed(self._file.contents.records)
            if record.kind == "data"
        }


def check_all_held(said: list[ChainRecord], held: LedgerContents) -> None:
    """Checks that a ledger holds the charges that the records of an audit log tell of.

    Raises:
        LedgerRolledBack: it lacks one.
    """
    named = {str(r.body["charge"]) for r in said if r.kind == "release" and r.body["charge"]}
    carried = sum(int(r.body["charges"]) for r in said if r.kind == SUCCESSION)
    missing = len(named - {record.hash for record in held.charges})
    missing += carried - sum(record.kind == CARRIED for record in held.records)
    if missing:
        raise LedgerRolledBack(
            f"The audit log tells of {missing} charges that the privacy ledger does not "
            "hold: it was removed, or an older copy was put back. Restore the newest one, or "
            "retire this site's data."
        )


def epsilon_of(charges: list[Charge], delta: float, *more: Event) -> float:
    """Returns what charges, and more events to people, cost them at ``delta``."""
    return epsilon((*_events(charges), *more), delta)


def _charge(record: ChainRecord) -> Charge:
    body = record.body
    return Charge(
        id=record.hash,
        run=str(body["run"]),
        plan=str(body["plan"]),
        unit=str(body["unit"]),
        version=str(body["version"]),
        carried=record.kind == CARRIED,
        time=float(body["charged_at"]) if record.kind == CARRIED else record.time,
        event=read_event(body["event"]),
    )


def _events(charges: list[Charge]) -> tuple[Event, ...]:
    # Merged, so that the accountant's memory of past answers is hit by every site and round.
    return tuple(merge([for_people(charge.unit, charge.event) for charge in charges]))
