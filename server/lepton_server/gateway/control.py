"""The control service: people of the roster submit, watch, stop and fetch runs, as roles allow."""

import math
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from typing import NoReturn

import grpc

from lepton_common.audit import AuditLog
from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import ControlServicer
from lepton_common.errors import (
    CheckpointUnreadable,
    LeptonError,
    NotAllowed,
    RunNotFound,
    SettingsError,
    StudyInvalid,
)
from lepton_common.identity.roster import Person, Role
from lepton_common.identity.study import read_study
from lepton_common.proposal import Proposal, beyond_study, read_proposal
from lepton_common.settings import Settings
from lepton_server.gateway.circles import Circles
from lepton_server.gateway.published import Published
from lepton_server.gateway.runs import Runs, RunState, as_fields, no_run
from lepton_server.gateway.serving import refuse
from lepton_server.gateway.sites import Sites
from lepton_server.trackers.catalog import check_submitted

_LOOK_S = 0.1
_INVALID, _NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
_PART_BYTES = 1 << 20


class Control(ControlServicer):  # type: ignore[misc]
    """Answers calls; each is in the coordinator's audit log first, and its refusal after it."""

    def __init__(self, runs: Runs, sites: Sites, published: Published, audit: AuditLog) -> None:
        self._runs, self._sites, self._published, self._audit = runs, sites, published, audit
        self._circles = Circles(runs, lambda: published.newest)

    def Submit(self, request: wire.SubmitRequest, context: grpc.ServicerContext) -> wire.Run:
        """Starts a run."""
        who = self._admit(context, "Submit", "", {"lead"})
        try:
            proposal = read_proposal(request.proposal, self._published.roster)
            if proposal.by != who:
                raise NotAllowed(f"{who} submits what {proposal.by} has signed.")
            settings = proposal.parsed()
            check_submitted(settings.tracker)
            self._check_scope(proposal, settings)
            published = self._published
            name = self._runs.add(settings, request.proposal, who, published.text, published.root)
        except (LeptonError, ValueError) as error:
            self._refuse(context, _INVALID, error, who, "Submit")
        self._audit.append("submitted", {"by": who, "run": name})
        return wire.Run(**as_fields(self._runs.state(name)))

    def List(self, request: wire.ListRequest, context: grpc.ServicerContext) -> wire.ListReply:
        """Tells all runs that the caller may know of."""
        person = self._person(self._admit(context, "List", "", set()))
        found = []
        for name in self._runs.names():
            # A run whose file is damaged is no reason to hide the others.
            with suppress(CheckpointUnreadable):
                if self._circles.knows(person, name):
                    found.append(wire.Run(**as_fields(self._runs.state(name))))
        return wire.ListReply(runs=found)

    def Watch(self, request: wire.RunName, context: grpc.ServicerContext) -> Iterator[wire.Run]:
        """Tells of a run until it has ended."""
        who = self._admit(context, "Watch", request.name, set())
        told = None
        while context.is_active():
            state = self._state(context, "Watch", who, request.name)
            if state != told:
                told = state
                yield wire.Run(**as_fields(state))
            if state.status not in ("running", "waiting"):
                return
            time.sleep(_LOOK_S)

    def Stop(self, request: wire.RunName, context: grpc.ServicerContext) -> wire.Run:
        """Ends a run after its current round."""
        who = self._admit(context, "Stop", request.name, {"lead", "administrator"})
        state = self._state(context, "Stop", who, request.name)
        self._check_leads(context, "Stop", who, request.name, administrators=True)
        if state.status not in ("running", "waiting"):
            return wire.Run(**as_fields(state))
        self._runs.stop(request.name)
        self._sites.stop(request.name)
        return wire.Run(**as_fields(state))

    def Fetch(self, request: wire.RunName, context: grpc.ServicerContext) -> Iterator[wire.Part]:
        """Gives the last finished round's model, or what was asked for in place of one."""
        who = self._admit(context, "Fetch", request.name, {"lead"})
        self._state(context, "Fetch", who, request.name)
        self._check_leads(context, "Fetch", who, request.name)
        folder = self._runs.folder(request.name)
        path = folder.statistics if folder.statistics.exists() else folder.final_model
        if not path.exists():
            error = RunNotFound(f"No round of {request.name} is finished: there is nothing yet.")
            self._refuse(context, _NOT_FOUND, error, who, "Fetch", request.name)
        with path.open("rb") as file:
            while data := file.read(_PART_BYTES):
                yield wire.Part(data=data)

    def _check_scope(self, proposal: Proposal, settings: Settings) -> None:
        """Checks that a run's study covers it, and that its lead knows the run it evaluates.

        Early word to the lead: each site checks its study itself.

        Raises:
            StudyInvalid: there is no such study, it is over, or does not cover the run.
            SettingsError: there are too few sites for it.
            RunNotFound: nor a run of that study, or of none, to be evaluated.
        """
        who, name, published = proposal.by, proposal.study, self._published
        there = {member.name for member in published.roster.members}
        if name is not None:
            study, text = published.studies.get(name, (None, ""))
            if study is None or who not in study.leads:
                raise StudyInvalid(
                    f"No study {name} that {who} leads is published here: the partners sign it, "
                    "and 'lepton server join' takes it over."
                )
            read_study(text, published.roster, datetime.now(UTC).date())
            for fault in beyond_study(study, proposal, settings):
                raise StudyInvalid(f"{fault} Ask for what it covers.")
            there = there & set(study.sites)
        least = max(
            math.ceil(settings.federation.quorum * settings.cohort),
            settings.colluders + 2 if settings.secure else 1,
        )
        if len(there) < least:
            raise SettingsError(
                f"The run needs {least} sites at least, and there are {len(there)}: lower sites."
            )
        evaluated = settings.statistics.evaluates
        if evaluated is not None and not (
            self._circles.knows(self._person(who), evaluated)
            and self._runs.study_of(evaluated) in (None, name)
        ):
            raise no_run(evaluated)

    def _check_leads(
        self,
        context: grpc.ServicerContext,
        call: str,
        who: str,
        run: str,
        *,
        administrators: bool = False,
    ) -> None:
        """Checks that someone may do what only leads may, and, it may be, administrators."""
        person = self._person(who)
        allowed = person is not None and (
            self._circles.leads(person, run) or (administrators and "administrator" in person.roles)
        )
        if not allowed:
            error = NotAllowed(f"{call} is for those who lead the study of {run}.")
            self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, error, who, call, run)

    def _person(self, name: str) -> Person | None:
        return next((p for p in self._published.roster.people if p.name == name), None)

    def _state(self, context: grpc.ServicerContext, call: str, who: str, name: str) -> RunState:
        try:
            if not self._circles.knows(self._person(who), name):
                raise no_run(name)
            return self._runs.state(name)
        except LeptonError as error:
            self._refuse(context, _NOT_FOUND, error, who, call, name)

    def _refuse(
        self,
        context: grpc.ServicerContext,
        code: grpc.StatusCode,
        error: LeptonError | ValueError,
        who: str,
        call: str,
        run: str = "",
    ) -> NoReturn:
        """Ends a call that its role allows and something else does not, on record."""
        body = {"by": who, "call": call, "run": self._known(run), "error": type(error).__name__}
        self._audit.append("refused", body)
        refuse(context, code, error)

    def _known(self, run: str) -> str:
        """Returns a run's name; "" for what is none, which may be anything."""
        return run if run in self._runs.names() else ""

    def _admit(self, context: grpc.ServicerContext, call: str, run: str, roles: set[Role]) -> str:
        """Returns who calls, if they may; the call is on record either way."""
        said = str(dict(context.invocation_metadata()).get("x-lepton-person", ""))
        person = self._person(said)
        allowed = person is not None and (not roles or bool(roles & set(person.roles)))
        body = {"by": said, "call": call, "run": self._known(run), "allowed": allowed}
        self._audit.append("call", body)
        if not allowed:
            needed = " or ".join(sorted(roles)) or "any role"
            error = NotAllowed(f"{call} needs {needed}; the roster gives {said or 'nobody'} less.")
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, error)
        return said
