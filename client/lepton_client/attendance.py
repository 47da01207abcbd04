"""An agent's attendance at the coordinator: woken for work, told of stops, rosters and studies.

One stream, which the site opens; where it breaks it is opened again, ever later. Without it the
agent looks for work by itself.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

import grpc

from lepton_client.site import Site
from lepton_client.witnessing import Witnessing
from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import SitesStub
from lepton_common.errors import IdentityError, LeptonError
from lepton_common.identity.certificates import Leaf
from lepton_common.identity.roster import Coordinator

Stopped = Callable[[], bool]
_LOG = logging.getLogger("lepton.agent")
_OPTIONS = [
    # Networks forget connections that are silent; and a dead one must show.
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", 16 << 20),
    # Each try is a new connection, at the times that are chosen here.
    ("grpc.use_local_subchannel_pool", 1),
]
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_BEGIN_S, _SLICE_S, _REPORT_S = 15.0, 0.1, 2.0
# Between looks for work: as a safety net, and while nobody would wake us.
_ATTENDING_S, _ALONE_S = 5.0, 0.5


class Attendance:
    """Keeps up the stream of notices, in a thread of its own, until it is closed."""

    def __init__(
        self, site: Site, connect: Callable[[], grpc.Channel], on_stop: Callable[[str], None]
    ) -> None:
        """Begins to attend.

        Args:
            site: takes over newer rosters and studies.
            connect: opens a channel to the control service.
            on_stop: called with the name of a run that someone stopped.
        """
        self._site, self._connect, self._on_stop = site, connect, on_stop
        self._coordinator = site.roster.coordinator
        self._work, self._told, self._over = threading.Event(), threading.Event(), threading.Event()
        self._witnessing = Witnessing(site)
        self._attending = self._unseen = False
        self._report_at = 0.0
        self._stub: SitesStub | None = None
        self._stream: grpc.Call | None = None
        self._error: Exception | None = None
        self._fault: LeptonError | OSError | None = None
        self._thread = threading.Thread(target=self._attend, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._stream is not None:
            self._stream.cancel()
        self._thread.join(_BEGIN_S)

    def begin(self, stopped: Stopped) -> None:
        """Returns once the coordinator has told all that it knows for this site.

        Raises:
            OSError: it cannot be reached.
            LeptonError: see `looking`.
        """
        deadline = time.monotonic() + _BEGIN_S
        while not (self._told.wait(_SLICE_S) or stopped()):
            self._check()
            if self._error is not None or time.monotonic() > deadline:
                raise ConnectionError("The control service does not answer.") from self._error
        self._check()

    def looking(self) -> None:
        """To be called before each look for work: what comes from now on ends the next wait.

        Raises:
            OSError: there is another coordinator now.
            RosterInvalid, RosterExpired: a newer roster does not let this site work.
            AuditRolledBack, LedgerRolledBack: its logs lack what others have witnessed.
        """
        self._work.clear()
        self._check()

    def released(self) -> None:
        """Something has left the site: its logs' heads are witnessed soon."""
        self._unseen = True
        self._report()

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault

    def wait(self, stopped: Stopped) -> None:
        """Returns once work waits, or it is time to look for it anyway."""
        began = time.monotonic()
        self._report()
        while not (self._work.wait(_SLICE_S) or stopped()):
            self._report()
            if time.monotonic() - began > (_ATTENDING_S if self._attending else _ALONE_S):
                return

    def _attend(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._over.is_set():
            try:
                self._listen()
            except (grpc.RpcError, OSError) as error:
                self._error = error
            except LeptonError as error:  # the site's own logs are not as they should be
                self._stop_work(error)
                return
            if self._attending:
                _LOG.info("The control service ended the attendance; it is opened again.")
                wait_s = _FIRST_WAIT_S
            self._attending = False
            self._over.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _listen(self) -> None:
        with self._connect() as channel:
            self._stub = SitesStub(channel)
            self._stream = self._stub.Attend(self._attendance())
            if self._over.is_set():
                return
            for notice in self._stream:
                self._take(notice)

    def _attendance(self) -> wire.Attendance:
        roster = self._site.roster.version
        studies = {study.name: study.version for study in self._site.studies()}
        held = self._witnessing.held()
        about = {"roster": roster, "studies": studies, "held": len(held)}
        heads = self._witnessing.report(about)
        return wire.Attendance(roster=roster, studies=studies, heads=heads, held=held)

    def _report(self) -> None:
        """Has the logs' heads witnessed if something was released since; not too often."""
        due = self._unseen and self._attending and time.monotonic() >= self._report_at
        if due and self._stub is not None:
            self._unseen, self._report_at = False, time.monotonic() + _REPORT_S
            call = self._stub.Report.future(
                wire.Heads(signed=self._witnessing.report({})), timeout=_BEGIN_S
            )
            call.add_done_callback(self._reported)

    def _reported(self, call: grpc.Future) -> None:
        try:
            self._take_witnessed(call.result().statement)
        except (grpc.RpcError, grpc.FutureCancelledError, OSError) as error:
            self._unseen = True  # they are told again
            _LOG.info("The logs' heads were not witnessed (%s).", type(error).__name__)

    def _take(self, notice: wire.Notice) -> None:
        what = notice.WhichOneof("what")
        if what == "stop":
            _LOG.info("Someone stopped the run %s.", notice.stop)
            self._on_stop(notice.stop)
        elif what == "roster":
            self._take_roster(notice.roster)
        elif what == "study":
            self._take_study(notice.study)
        elif what == "witnessed":
            self._take_witnessed(notice.witnessed)
        elif what == "alive" and not self._attending:
            self._attending = True
            self._told.set()
            self._work.set()  # what came while we were away
        elif what == "work":
            self._work.set()

    def _take_roster(self, text: str) -> None:
        try:
            roster = self._site.take_roster(text)
        except IdentityError as error:
            _LOG.warning("The roster that came is not taken over: %s", error)
            return
        _LOG.info("Version %d of the roster is taken over.", roster.version)
        try:
            if self._site.coordinator() != self._coordinator:
                self._stop_work(ConnectionError("The roster names another coordinator."))
        except IdentityError as error:
            self._stop_work(error)

    def _take_study(self, text: str) -> None:
        try:
            study = self._site.take_study(text)
        except IdentityError as error:
            _LOG.warning("The study that came is not taken over: %s", error)
            return
        _LOG.info("Version %d of the study %s is taken over.", study.version, study.name)

    def _take_witnessed(self, text: str) -> None:
        try:
            self._witnessing.take(text)
        except LeptonError as error:
            self._stop_work(error)

    def _stop_work(self, fault: LeptonError | OSError) -> None:
        self._fault = fault
        self._work.set()


def connector(coordinator: Coordinator, leaf: Leaf) -> Callable[[], grpc.Channel]:
    """Returns what opens a channel to the coordinator, by way of ``https_proxy`` where that is set.

    Args:
        coordinator: as the roster names it.
        leaf: the site's certificate.
    """
    credentials = grpc.ssl_channel_credentials(
        coordinator.authority.encode(), leaf.private_key, leaf.certificate
    )
    target = f"{coordinator.hosts[0]}:{coordinator.port}"
    return lambda: grpc.secure_channel(target, credentials, _OPTIONS)
