"""An agent's attendance at the coordinator: woken when work waits, told what to stop.

One stream, which the site opens; where it breaks it is opened again, ever later. Without it the
agent looks for work by itself.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Self

import grpc

from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import SitesStub
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
_BEGIN_S, _SLICE_S = 15.0, 0.1
# Between looks for work: as a safety net, and while nobody would wake us.
_ATTENDING_S, _ALONE_S = 5.0, 0.5


class Attendance:
    """Keeps up the stream of notices, in a thread of its own, until it is closed."""

    def __init__(self, connect: Callable[[], grpc.Channel], on_stop: Callable[[str], None]) -> None:
        """Begins to attend.

        Args:
            connect: opens a channel to the control service.
            on_stop: called with the name of a run that someone stopped.
        """
        self._connect, self._on_stop = connect, on_stop
        self._work, self._told, self._over = threading.Event(), threading.Event(), threading.Event()
        self._attending = False
        self._stream: grpc.Call | None = None
        self._error: Exception | None = None
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
        """
        deadline = time.monotonic() + _BEGIN_S
        while not (self._told.wait(_SLICE_S) or stopped()):
            if self._error is not None or time.monotonic() > deadline:
                raise ConnectionError("The control service does not answer.") from self._error

    def looking(self) -> None:
        """To be called before each look for work: what comes from now on ends the next wait."""
        self._work.clear()

    def wait(self, stopped: Stopped) -> None:
        """Returns once work waits, or it is time to look for it anyway."""
        began = time.monotonic()
        while not (self._work.wait(_SLICE_S) or stopped()):
            if time.monotonic() - began > (_ATTENDING_S if self._attending else _ALONE_S):
                return

    def _attend(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._over.is_set():
            try:
                self._listen()
            except grpc.RpcError as error:
                self._error = error
            if self._attending:
                _LOG.info("The control service ended the attendance; it is opened again.")
                wait_s = _FIRST_WAIT_S
            self._attending = False
            self._over.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _listen(self) -> None:
        with self._connect() as channel:
            self._stream = SitesStub(channel).Attend(wire.Attendance())
            if self._over.is_set():
                return
            for notice in self._stream:
                self._take(notice)

    def _take(self, notice: wire.Notice) -> None:
        what = notice.WhichOneof("what")
        if what == "stop":
            self._on_stop(notice.stop)
        elif what == "alive" and not self._attending:
            self._attending = True
            self._told.set()
            self._work.set()  # what came while we were away
        elif what == "work":
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
