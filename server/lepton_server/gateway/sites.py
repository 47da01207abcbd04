"""The sites' half of the control service: an agent attends, and is told at once what it must know.

News of one kind replace each other, so that the server keeps little for a site however slowly it
listens, and nothing for one that is not there.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import grpc

from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import InsideServicer, SitesServicer
from lepton_common.errors import AuditRolledBack, HeadsInvalid, NotAllowed
from lepton_common.identity.roster import Member
from lepton_server.gateway.circles import Circles
from lepton_server.gateway.health import SignOfLife
from lepton_server.gateway.published import Published
from lepton_server.gateway.runs import Runs
from lepton_server.gateway.serving import refuse
from lepton_server.gateway.witness import Witness

_ALIVE_S = 20.0
_MOST_STOPS = 64
_ALIVE, _WORK = wire.Notice(alive=wire.Nothing()), wire.Notice(work=wire.Nothing())


@dataclass
class Mail:
    """What a site has yet to be told.

    Attributes:
        work: whether something waits for it at the fleet API.
        published: whether there is a newer roster or study.
        stops: runs that someone stopped.
        witnessed: sites whose logs went on.
    """

    work: bool = False
    published: bool = False
    stops: dict[str, None] = field(default_factory=dict)
    witnessed: set[str] = field(default_factory=set)

    def add_stop(self, run: str) -> None:
        """Adds a stopped run; the oldest give way."""
        self.stops[run] = None
        while len(self.stops) > _MOST_STOPS:
            del self.stops[next(iter(self.stops))]


class Mailbox:
    """Holds the mail of one attending site."""

    def __init__(self) -> None:
        self._changed, self._closed = threading.Condition(), False
        self._mail = Mail()

    def put(self, add: Callable[[Mail], None]) -> None:
        """Adds to the mail, and has it fetched."""
        with self._changed:
            add(self._mail)
            self._changed.notify()

    def close(self) -> None:
        """The site is gone, or attends anew."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self, timeout_s: float) -> Mail | None:
        """Returns the mail once there is some, or the time is over; None once it is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._mail != Mail() or self._closed, timeout_s)
            mail, self._mail = self._mail, Mail()
            return None if self._closed else mail


class Sites(SitesServicer):  # type: ignore[misc]
    """Answers sites' agents; the proxy says which site calls, from its certificate."""

    def __init__(self, runs: Runs, published: Published, witness: Witness) -> None:
        self._runs, self._published, self._witness = runs, published, witness
        self._circles = Circles(runs, lambda: published.newest)
        self._boxes: dict[str, Mailbox] = {}
        self._lock = threading.Lock()

    def Attend(
        self, request: wire.Attendance, context: grpc.ServicerContext
    ) -> Iterator[wire.Notice]:
        """Tells a site's agent what it must know, for as long as it stays and is in the roster."""
        name = self._admit(context).name
        box, held = self._open(name), Held(request)
        try:
            # False where the call has ended already.
            if context.add_callback(box.close):
                self._witness.recall(request.held)
                yield from self._statements([name])
                self._see(name, request.heads, context)
                yield from self._statements(self._witness.sites() - {name})
                yield from held.newer(name, self._published)
                yield from self._stopped(name)
                yield _ALIVE
            while (mail := box.take(_ALIVE_S)) is not None:
                if mail.published:
                    yield from held.newer(name, self._published)
                    if self._member(name) is None:
                        return
                yield from (wire.Notice(stop=run) for run in mail.stops)
                yield from self._statements(mail.witnessed)
                yield _WORK if mail.work else _ALIVE
        finally:
            self._leave(name, box)

    def Report(self, request: wire.Heads, context: grpc.ServicerContext) -> wire.Witnessed:
        """Witnesses how far a site's logs went, and passes it on."""
        name = self._admit(context).name
        return wire.Witnessed(statement=self._see(name, request.signed, context))

    def wake(self, sites: Iterable[str]) -> None:
        """Tells sites that something waits for them."""
        for name in set(sites):
            if box := self._boxes.get(name):
                box.put(lambda mail: setattr(mail, "work", True))

    def stop(self, run: str) -> None:
        """Tells the sites that take part in a run that someone stopped it."""
        for name, box in list(self._boxes.items()):
            if self._circles.takes_part(name, run):
                box.put(lambda mail: mail.add_stop(run))

    def published(self) -> None:
        """Tells all sites of newer rosters and studies; who is in the roster no more, leaves."""
        for box in list(self._boxes.values()):
            box.put(lambda mail: setattr(mail, "published", True))

    def attending(self) -> list[str]:
        """Returns the sites that attend."""
        return sorted(self._boxes)

    def close(self) -> None:
        """Ends all attendances."""
        for box in list(self._boxes.values()):
            box.close()

    def _see(self, name: str, heads: str, context: grpc.ServicerContext) -> str:
        try:
            statement, new = self._witness.see(name, heads)
        except HeadsInvalid as error:
            refuse(context, grpc.StatusCode.INVALID_ARGUMENT, error)
        except AuditRolledBack:
            # The site is told what it held once, and sees for itself.
            return self._witness.statement(name)
        if new:
            with self._lock:
                others = [box for site, box in self._boxes.items() if site != name]
            for box in others:
                box.put(lambda mail: mail.witnessed.add(name))
        return statement

    def _statements(self, sites: Iterable[str]) -> Iterator[wire.Notice]:
        for site in sorted(sites):
            if text := self._witness.statement(site):
                yield wire.Notice(witnessed=text)

    def _stopped(self, site: str) -> Iterator[wire.Notice]:
        """Yields the stops that a site may have missed."""
        for run in self._runs.unfinished():
            if self._runs.stop_requested(run) and self._circles.takes_part(site, run):
                yield wire.Notice(stop=run)

    def _open(self, name: str) -> Mailbox:
        """Opens a site's mailbox; one that it had is closed, so that it holds one stream."""
        box = Mailbox()
        with self._lock:
            before, self._boxes[name] = self._boxes.get(name), box
        if before:
            before.close()
        return box

    def _leave(self, name: str, box: Mailbox) -> None:
        box.close()
        with self._lock:
            if self._boxes.get(name) is box:
                del self._boxes[name]

    def _member(self, name: str) -> Member | None:
        return next((m for m in self._published.roster.members if m.name == name), None)

    def _admit(self, context: grpc.ServicerContext) -> Member:
        said = str(dict(context.invocation_metadata()).get("x-lepton-site", ""))
        if (member := self._member(said)) is None:
            error = NotAllowed(f"The roster names no site {said}.")
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, error)
        return member


class Held:
    """Which versions a site holds, as it said, and as it was told since."""

    def __init__(self, said: wire.Attendance) -> None:
        self._roster, self._studies = said.roster, dict(said.studies)

    def newer(self, site: str, published: Published) -> Iterator[wire.Notice]:
        """Yields what is newer, and counts it as told."""
        if published.roster.version > self._roster:
            self._roster = published.roster.version
            yield wire.Notice(roster=published.text)
        for text in published.studies_for(site, self._studies):
            yield wire.Notice(study=text)
        # No more than what there is, however much the site said.
        told = {study.name: study for study, _ in published.studies.values()}
        self._studies = {
            name: study.version for name, study in told.items() if published.hears_of(site, study)
        }


class Inside(InsideServicer):  # type: ignore[misc]
    """Answers the coordinator's own executor."""

    def __init__(self, sites: Sites, executor: SignOfLife) -> None:
        self._sites, self._executor = sites, executor

    def Wake(self, request: wire.Woken, context: grpc.ServicerContext) -> wire.Nothing:
        """Tells sites that something waits for them."""
        self._executor.give()
        self._sites.wake(request.sites)
        return wire.Nothing()
