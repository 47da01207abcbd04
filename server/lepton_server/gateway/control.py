"""The control service: people of the roster submit, watch, stop and fetch runs, as roles allow."""

import time
from collections.abc import Iterator

import grpc

from lepton_common.audit import AuditLog
from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import ControlServicer
from lepton_common.errors import LeptonError, NotAllowed, RunNotFound, StudyInvalid
from lepton_common.identity.roster import Role
from lepton_common.identity.study import Study
from lepton_common.proposal import read_proposal
from lepton_common.strict import to_json
from lepton_server.gateway.published import Published
from lepton_server.gateway.runs import Runs, RunState, Submitted, as_fields, no_run
from lepton_server.gateway.serving import refuse
from lepton_server.gateway.sites import Sites
from lepton_server.trackers.catalog import check_submitted

_LOOK_S = 0.1
_PART_BYTES = 1 << 20


class Control(ControlServicer):  # type: ignore[misc]
    """Answers calls; every one of them is in the coordinator's audit log first."""

    def __init__(self, runs: Runs, sites: Sites, published: Published, audit: AuditLog) -> None:
        self._runs, self._sites, self._published, self._audit = runs, sites, published, audit

    def Submit(self, request: wire.SubmitRequest, context: grpc.ServicerContext) -> wire.Run:
        """Starts a run."""
        who = self._admit(context, "Submit", "", {"lead"})
        try:
            proposal = read_proposal(request.proposal, self._published.roster)
            if proposal.by != who:
                raise NotAllowed(f"{who} submits what {proposal.by} has signed.")
            settings, study = proposal.parsed(), self._study_of(who, proposal.study)
            check_submitted(settings.tracker)
            submitted = Submitted(by=who, settings=to_json(settings), study=study)
            published = self._published
            name = self._runs.add(submitted, request.proposal, published.text, published.root)
        except (LeptonError, ValueError) as error:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        self._audit.append("submitted", {"by": who, "run": name})
        return wire.Run(**as_fields(self._runs.state(name)))

    def List(self, request: wire.ListRequest, context: grpc.ServicerContext) -> wire.ListReply:
        """Tells all runs that the caller may know of."""
        who = self._admit(context, "List", "", set())
        states = (self._runs.state(name) for name in self._runs.names() if self._knows(who, name))
        return wire.ListReply(runs=[wire.Run(**as_fields(state)) for state in states])

    def Watch(self, request: wire.RunName, context: grpc.ServicerContext) -> Iterator[wire.Run]:
        """Tells of a run until it has ended."""
        who = self._admit(context, "Watch", request.name, set())
        told = None
        while context.is_active():
            state = self._state(who, request.name, context)
            if state != told:
                told = state
                yield wire.Run(**as_fields(state))
            if state.status not in ("running", "waiting"):
                return
            time.sleep(_LOOK_S)

    def Stop(self, request: wire.RunName, context: grpc.ServicerContext) -> wire.Run:
        """Ends a run after its current round."""
        who = self._admit(context, "Stop", request.name, {"lead", "administrator"})
        state = self._state(who, request.name, context)
        self._runs.stop(request.name)
        self._sites.stop(request.name)
        return wire.Run(**as_fields(state))

    def Fetch(self, request: wire.RunName, context: grpc.ServicerContext) -> Iterator[wire.Part]:
        """Gives the last finished round's model, or what was asked for in place of one."""
        who = self._admit(context, "Fetch", request.name, {"lead"})
        self._state(who, request.name, context)
        folder = self._runs.folder(request.name)
        path = folder.statistics if folder.statistics.exists() else folder.final_model
        if not path.exists():
            error = RunNotFound(f"No round of {request.name} is finished: there is nothing yet.")
            refuse(context, grpc.StatusCode.NOT_FOUND, error)
        with path.open("rb") as file:
            while data := file.read(_PART_BYTES):
                yield wire.Part(data=data)

    def _study_of(self, who: str, name: str | None) -> Study | None:
        """Returns the study that a run is part of, which its lead must lead."""
        if name is None:
            return None
        study, _ = self._published.studies.get(name, (None, ""))
        if study is None or who not in study.leads:
            raise StudyInvalid(
                f"No study {name} that {who} leads is published here: the partners sign it, and "
                "'lepton server join' takes it over."
            )
        return study

    def _knows(self, who: str, run: str) -> bool:
        """Says whether someone may know of a run: of a study's, its people and administrators."""
        then = self._runs.submitted(run).study
        if then is None:
            return True
        study, _ = self._published.studies.get(then.name, (then, ""))
        person = next(p for p in self._published.roster.people if p.name == who)
        return who in {*study.leads, *study.auditors} or "administrator" in person.roles

    def _state(self, who: str, name: str, context: grpc.ServicerContext) -> RunState:
        try:
            if not self._knows(who, name):
                raise no_run(name)
            return self._runs.state(name)
        except LeptonError as error:
            refuse(context, grpc.StatusCode.NOT_FOUND, error)

    def _admit(self, context: grpc.ServicerContext, call: str, run: str, roles: set[Role]) -> str:
        """Returns who calls, if they may; the call is on record either way."""
        said = str(dict(context.invocation_metadata()).get("x-lepton-person", ""))
        person = next((p for p in self._published.roster.people if p.name == said), None)
        allowed = person is not None and (not roles or bool(roles & set(person.roles)))
        # A name that is no run's may be anything.
        known = run if run in self._runs.names() else ""
        self._audit.append("call", {"by": said, "call": call, "run": known, "allowed": allowed})
        if not allowed:
            needed = " or ".join(sorted(roles)) or "any role"
            error = NotAllowed(f"{call} needs {needed}; the roster gives {said or 'nobody'} less.")
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, error)
        return said
