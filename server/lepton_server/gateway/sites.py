"""The sites' half of the control service: an agent attends, and is told at once what it must know.

News of one kind replace each other, so that the server keeps little for a site however slowly it
listens, and nothing for one that is not there.
"""

import threading
from collections.abc import Iterable, Iterator

import grpc

from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import InsideServicer, SitesServicer
from lepton_common.errors import NotAllowed
from lepton_common.identity.roster import Roster
from lepton_server.gateway.runs import Runs
from lepton_server.gateway.serving import refuse

_ALIVE_S = 20.0
_MOST_STOPS = 64


class Mailbox:
    """What one attending site has yet to be told."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._work = self._closed = False
        self._stops: list[str] = []

    def work(self) -> None:
        """Something waits for the site."""
        with self._changed:
            self._work = True
            self._changed.notify()

    def stop(self, run: str) -> None:
        """Someone stopped a run."""
        with self._changed:
            kept = [name for name in self._stops if name != run]
            self._stops = [*kept, run][-_MOST_STOPS:]
            self._changed.notify()

    def close(self) -> None:
        """The site is gone, or attends anew."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def take(self, timeout_s: float) -> list[wire.Notice] | None:
        """Returns what there is to tell once there is something, or sign of life; None: closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._work or self._stops or self._closed, timeout_s)
            if self._closed:
                return None
            found = [wire.Notice(stop=name) for name in self._stops]
            if self._work:
                found.append(wire.Notice(work=wire.Nothing()))
            self._work, self._stops = False, []
            return found or [wire.Notice(alive=wire.Nothing())]


class Sites(SitesServicer):  # type: ignore[misc]
    """Answers sites' agents; the proxy says which site calls, from its certificate."""

    def __init__(self, runs: Runs, roster: Roster) -> None:
        self._runs, self._roster = runs, roster
        self._boxes: dict[str, Mailbox] = {}
        self._lock = threading.Lock()

    def Attend(
        self, request: wire.Attendance, context: grpc.ServicerContext
    ) -> Iterator[wire.Notice]:
        """Tells a site's agent what it must know, for as long as it stays."""
        name = self._admit(context)
        box = self._open(name)
        try:
            # False where the call has ended already.
            if context.add_callback(box.close):
                yield from self._known()
                yield wire.Notice(alive=wire.Nothing())
            while (notices := box.take(_ALIVE_S)) is not None:
                yield from notices
        finally:
            self._leave(name, box)

    def wake(self, sites: Iterable[str]) -> None:
        """Tells sites that something waits for them."""
        for name in set(sites):
            if box := self._boxes.get(name):
                box.work()

    def stop(self, run: str) -> None:
        """Tells all sites that someone stopped a run."""
        for box in list(self._boxes.values()):
            box.stop(run)

    def attending(self) -> list[str]:
        """Returns the sites that attend."""
        return sorted(self._boxes)

    def close(self) -> None:
        """Ends all attendances."""
        for box in list(self._boxes.values()):
            box.close()

    def _known(self) -> Iterator[wire.Notice]:
        """Yields what a site may have missed."""
        for run in self._runs.unfinished():
            if self._runs.stop_requested(run):
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

    def _admit(self, context: grpc.ServicerContext) -> str:
        said = str(dict(context.invocation_metadata()).get("x-lepton-site", ""))
        if said not in {member.name for member in self._roster.members}:
            error = NotAllowed(f"The roster names no site {said}.")
            refuse(context, grpc.StatusCode.PERMISSION_DENIED, error)
        return said


class Inside(InsideServicer):  # type: ignore[misc]
    """Answers the coordinator's own executor."""

    def __init__(self, sites: Sites) -> None:
        self._sites = sites

    def Wake(self, request: wire.Woken, context: grpc.ServicerContext) -> wire.Nothing:
        """Tells sites that something waits for them."""
        self._sites.wake(request.sites)
        return wire.Nothing()
