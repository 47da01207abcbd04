"""That a coordinator is alone: in its folder, whose lock it holds, and at its port."""

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lepton_common.errors import CoordinatorRunning, ServerFailed
from lepton_common.locks import only_one

LOCK_FILE = "coordinator.lock"
_LEAVING_S = 10.0  # what a killed coordinator has left at the port needs a moment to end


@contextmanager
def only_coordinator(folder: Path) -> Iterator[None]:
    """Keeps others out of a coordinator's folder, where they would take over its parts' files.

    Raises:
        CoordinatorRunning: one is there already.
    """
    taken = CoordinatorRunning(
        f"A coordinator works in {folder} already: end it first, or leave it at work."
    )
    with only_one(folder / LOCK_FILE, taken):
        yield


def check_port(port: int, leaving_s: float = _LEAVING_S) -> None:
    """Checks that nobody listens at a port, which nginx would try for without an end.

    Args:
        port: the public one.
        leaving_s: how long somebody there may take to leave.

    Raises:
        ServerFailed: somebody does.
    """
    deadline = time.monotonic() + leaving_s
    while _taken(port):
        if time.monotonic() >= deadline:
            raise ServerFailed(
                f"Something else listens at port {port}, which the roster gives the coordinator; "
                f"end it ('ss -ltnp sport = :{port}' tells what it is), and start again."
            )
        time.sleep(0.1)


def _taken(port: int) -> bool:
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as nginx does
        try:
            tried.bind(("", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE  # a port that takes privileges is nginx's to try
    return False
