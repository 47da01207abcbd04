"""The runs that were proposed to a site: what was asked, whether it may be, and what it binds.

A proposal lies in ``proposals/RUN.json`` as its lead signed it; beside it in ``RUN.decision``
what the operator said of it. The agent writes the one, the operator the other.
"""

import hashlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from lepton_client.approved_models import approved_version
from lepton_client.ledger import StudyBudget
from lepton_client.rules import LaunchRules
from lepton_common.asking import keeps_privacy, masked_sum, recipe, statistics_query
from lepton_common.audit import AuditLog
from lepton_common.durable import write_atomic
from lepton_common.errors import (
    ApprovalPending,
    BaseMissing,
    ConsentRefused,
    LeptonError,
    ModelNotApproved,
    PackageAltered,
    PolicyViolation,
    ProposalInvalid,
    QuietHours,
    StudyInvalid,
)
from lepton_common.identity.roster import Roster
from lepton_common.identity.signed import Signed
from lepton_common.identity.study import Study, read_study
from lepton_common.messages import TrainRequest
from lepton_common.models.bases import BASES, based, check_kept, without_base
from lepton_common.models.packaged import packaged
from lepton_common.policy import SitePolicy
from lepton_common.proposal import Proposal, beyond_study, read_proposal, uncovered
from lepton_common.settings import Settings
from lepton_common.statistics import EvaluationQuery
from lepton_common.strict import Digest, parse_json, record, to_json

if TYPE_CHECKING:
    from lepton_client.site import SiteFile

FOLDER, STUDIES = "proposals", "studies"
Verdict = Literal["approved", "refused"]


@record
class Decision:
    """What the operator said of a proposal.

    Attributes:
        verdict: whether the run may be.
        proposal: SHA-256 of the proposal's text, so that no other one passes under its name.
    """

    verdict: Verdict
    proposal: Digest


class Proposals:
    """A site's proposals."""

    def __init__(self, folder: Path, audit: AuditLog | None) -> None:
        """Takes the site's folder and its log; without the log it only looks."""
        self._folder, self._audit = folder, audit

    def admit(self, run: str, text: str | None, file: "SiteFile", roster: Roster) -> None:
        """Takes a proposal in, the first time on record, and says by returning that it may be.

        Raises:
            ProposalInvalid: it is not signed as it should be, or is another than before.
            ConsentRefused: rules, study, policy or operator forbid it.
            ModelNotApproved: its model is of a package that the operator has not approved so.
            ApprovalPending: the operator has not decided.
        """
        if text is None:
            raise ConsentRefused("This site takes part in runs that were proposed to it only.")
        proposal = read_proposal(text, roster)
        self._keep(run, text)
        self._check(run, text, proposal, file, roster)

    def check(
        self, request: TrainRequest, size: int | None, file: "SiteFile", roster: Roster
    ) -> None:
        """Holds a request against the proposal that its run began with, and that against today.

        Args:
            request: what is asked.
            size: number of weights, where the model is there.
            file: the site's, as of now.
            roster: as of now.

        Raises:
            ConsentRefused: there is none, it has been refused, or something else is asked.
            ApprovalPending: the operator has not decided.
            QuietHours: nothing is trained at this time of the day.
        """
        text = self.text(request.run)
        if text is None:
            raise ConsentRefused("This run was not proposed to this site.")
        proposal = read_proposal(text, roster)
        self._check(request.run, text, proposal, file, roster)
        quiet = _rules(file).quiet(datetime.now().time())
        if quiet is not None:
            raise QuietHours(f"This site trains nothing from {quiet} (launch.quiet_hours).")
        settings = proposal.parsed()
        for what, (asked, proposed) in _terms(request, settings).items():
            if asked != proposed:
                raise PolicyViolation(f"What is asked is not what was proposed: {what} differs.")
        least = math.ceil(settings.federation.quorum * settings.cohort)
        if request.round > settings.rounds or request.cohort < least:
            raise PolicyViolation("The round is beyond the proposed run, or for fewer sites.")
        if size is not None and not keeps_privacy(
            request.privacy, settings, _length(request, size)
        ):
            raise PolicyViolation("What is asked is not what was proposed: the privacy plan.")

    def text(self, run: str) -> str | None:
        """Returns the signed text of a run's proposal; None where there is none."""
        path = self._folder / FOLDER / f"{run}.json"
        return path.read_text(encoding="utf-8") if path.exists() else None

    def names(self) -> list[str]:
        """Returns the runs that were proposed, by name."""
        return sorted(path.stem for path in (self._folder / FOLDER).glob("*.json"))

    def decide(self, run: str, verdict: Verdict) -> None:
        """Keeps what the operator says of a run; takes effect at its next message.

        Raises:
            ConsentRefused: there is no such run.
        """
        text = self.text(run)
        if text is None:
            raise ConsentRefused(f"No run {run} was proposed; 'lepton site requests' tells them.")
        decision = Decision(verdict=verdict, proposal=_digest(text))
        write_atomic(self._folder / FOLDER / f"{run}.decision", to_json(decision).encode())

    def verdict(self, run: str) -> Verdict | None:
        """Returns what the operator said of a run; None where nothing was said."""
        path, text = self._folder / FOLDER / f"{run}.decision", self.text(run)
        if text is None or not path.exists():
            return None
        try:
            decision = parse_json(Decision, path.read_text(encoding="utf-8"))
        except ValueError:
            return "refused"  # whatever was meant, it is no consent
        return decision.verdict if decision.proposal == _digest(text) else None

    def budget(self, run: str, roster: Roster) -> StudyBudget | None:
        """Returns what the run's study may spend, over all its runs; None where it is of none."""
        found: dict[str, Proposal] = {}
        for name in self.names():
            text = self.text(name)
            assert text is not None, "it was listed"
            found[name] = parse_json(Proposal, parse_json(Signed, text).document)
        study = found[run].study if run in found else None
        if study is None:
            return None
        runs = frozenset(name for name, proposal in found.items() if proposal.study == study)
        return StudyBudget(study, self.study(study, roster).max_epsilon, runs)

    def study(self, name: str, roster: Roster) -> Study:
        """Returns a study that this site holds, as the partners signed it, and valid today.

        Raises:
            StudyInvalid: it is not.
            ConsentRefused: this site holds none of that name.
        """
        path = self._folder / STUDIES / f"{name}.json"
        if not path.exists():
            raise ConsentRefused(f"This site holds no study {name}; 'lepton site join' brings it.")
        return read_study(path.read_text(encoding="utf-8"), roster, datetime.now(UTC).date())

    def objections(
        self, proposal: Proposal, file: "SiteFile", roster: Roster
    ) -> Iterator[LeptonError]:
        """Yields what forbids a proposed run here, whatever the operator says of it."""
        rules = _rules(file)
        if rules.people is not None and proposal.by not in rules.people:
            yield ConsentRefused(f"This site takes part in no run of {proposal.by}.")
        try:
            settings = proposal.parsed()
        except ProposalInvalid as error:
            yield error
            return
        yield from _beyond_policy(settings, file.policy)
        base = based(settings.model)
        if base is not None and base.frozen:
            try:
                check_kept(base, self._folder / BASES)
            except BaseMissing as error:
                yield error
        if model := packaged(without_base(settings.model)):
            try:
                approved_version(self._folder, model)
            except (ModelNotApproved, PackageAltered) as error:
                yield error
        if proposal.study is not None:
            try:
                study = self.study(proposal.study, roster)
            except (StudyInvalid, ConsentRefused) as error:
                yield error
            else:
                yield from _beyond_study(study, proposal, settings, file)
        if rules.studies is not None and proposal.study not in rules.studies:
            yield ConsentRefused("This site takes part in runs of certain studies only.")

    def _keep(self, run: str, text: str) -> None:
        assert self._audit is not None, "who only looks takes nothing in"
        known, body = self.text(run), {"run": run, "proposal": _digest(text)}
        if known == text:
            # The machine may have died before that was on record.
            if not any(r.kind == "proposed" and r.body == body for r in self._audit.records):
                self._audit.append("proposed", body)
            return
        if known is not None:
            raise ProposalInvalid("Another proposal was made under this run's name.")
        if any(self.text(other) == text for other in self.names()):
            raise ProposalInvalid("This proposal was made under another run's name before.")
        (self._folder / FOLDER).mkdir(exist_ok=True)
        write_atomic(self._folder / FOLDER / f"{run}.json", text.encode())
        self._audit.append("proposed", body)

    def _check(
        self, run: str, text: str, proposal: Proposal, file: "SiteFile", roster: Roster
    ) -> None:
        for objection in self.objections(proposal, file, roster):
            raise objection
        verdict = self.verdict(run)
        if verdict is None and _rules(file).approval == "automatic":
            return
        self._note(run, _digest(text), verdict)
        if verdict is None:
            raise ApprovalPending("The operator decides; 'lepton site requests' shows what waits.")
        if verdict == "refused":
            raise ConsentRefused("The operator of this site has refused the run.")

    def _note(self, run: str, digest: str, verdict: Verdict | None) -> None:
        """Puts the operator's word on record when it is first acted on."""
        assert self._audit is not None, "who only looks acts on nothing"
        said = [r.body for r in self._audit.records if r.kind == "decided" and r.body["run"] == run]
        body = {"run": run, "proposal": digest, "verdict": verdict}
        if verdict is not None and (not said or said[-1] != body):
            self._audit.append("decided", body)


def _rules(file: "SiteFile") -> LaunchRules:
    assert file.launch is not None, "only sites with such rules ask"
    return file.launch


def _beyond_study(
    study: Study, proposal: Proposal, settings: Settings, file: "SiteFile"
) -> Iterator[ConsentRefused]:
    for what, one, named in (
        ("site", file.name, study.sites),
        ("data (data.id in site.yaml)", file.data.id, study.data),
    ):
        if one not in named:
            yield ConsentRefused(uncovered(study, what, one, named))
    yield from map(ConsentRefused, beyond_study(study, proposal, settings))


def _length(request: TrainRequest, size: int) -> int:
    """Returns the values of an evaluation's sum, and else of the model, given what it said."""
    query = request.statistics
    return query.length if isinstance(query, EvaluationQuery) else size


def _terms(request: TrainRequest, settings: Settings) -> dict[str, tuple[object, object]]:
    masked = request.masked
    form = masked_sum(settings, masked.weights) if masked else None
    how = recipe(settings, request.round, request.recipe.update_scale)
    return {
        "task": (request.task, settings.task),
        "model": (request.model, settings.model),
        "preparation of the data": (request.prepare, settings.data.prepare),
        "recipe": (request.recipe, how),
        "secure aggregation": (masked is not None, settings.secure),
        "form of the sum": (masked, form),
        "privacy": (request.privacy is None, not settings.private),
        "statistics": (request.statistics, statistics_query(settings, _length(request, 1))),
    }


def _beyond_policy(settings: Settings, policy: SitePolicy) -> Iterator[ConsentRefused]:
    """Yields why all requests of a run would be refused, before anybody works on it."""
    privacy, asked = settings.privacy, settings.statistics.asked
    faults = {
        "without differential privacy": not settings.private and not policy.allow_without_dp,
        "without secure aggregation": not settings.secure and not policy.allow_without_secagg,
        "of this model": not asked and not policy.trains(settings.model),
        "of statistics": asked and _beyond_rules(settings, policy),
        "of this task": policy.tasks is not None and settings.task not in policy.tasks,
        "with this delta": settings.private and (privacy.delta or 1.0) > policy.max_delta,
        "with this clipping norm": (
            settings.private
            and not policy.min_clipping_norm <= privacy.clipping_norm <= policy.max_clipping_norm
        ),
        "with this epsilon": settings.private
        and (privacy.epsilon or math.inf) > (policy.max_epsilon_per_run or policy.max_epsilon),
        "of so few sites": settings.cohort < policy.min_cohort,
    }
    for what, holds in faults.items():
        if holds:
            yield ConsentRefused(f"This site takes part in no run {what}.")


def _beyond_rules(settings: Settings, policy: SitePolicy) -> bool:
    rules = policy.statistics
    return rules is None or (
        settings.statistics.bins > rules.max_bins
        or settings.cohort < rules.min_cohort
        or (settings.privacy.epsilon or math.inf) > rules.max_epsilon
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
