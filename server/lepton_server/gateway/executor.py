"""The process that runs the ServerApp: warm, one run at a time, only the app installed here.

Flower starts a fresh Python for every run and installs what the run brings along.
"""

import argparse
import json
import logging
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import grpc
import httpx
from flwr.app import Context
from flwr.serverapp import Grid

from lepton_common.control.control_pb2 import Woken
from lepton_common.control.control_pb2_grpc import InsideStub
from lepton_common.durable import is_full
from lepton_common.errors import LeptonError, RunError, RunNotFound, SettingsError
from lepton_common.flower.bulk_transport import SECRET
from lepton_common.flower.superlink import SuperLink
from lepton_common.identity.roster import read_roster_files
from lepton_common.identity.study import newest_studies
from lepton_common.pages import give_back_freed_memory, keep_freed_pieces
from lepton_common.settings_rules import parse_settings
from lepton_server.app import app
from lepton_server.gateway.circles import Circles
from lepton_server.gateway.nodes import KnownNode, read_nodes
from lepton_server.gateway.published import ROOT_FILE, ROSTER_FILE, STUDIES
from lepton_server.gateway.runs import Runs, Submitted
from lepton_server.gateway.serving import SOCKET
from lepton_server.gateway.signed_grid import SignedGrid, Wake
from lepton_server.progress import OBSERVER, Observer, Observers
from lepton_server.run_folder import RunFolder
from lepton_server.trackers.catalog import check_submitted, trackers_of

_IDLE_S, _WAKE_S = 0.2, 1.0
# For sites that are not there: after a start, when all come back; and later on.
_GATHER_S, _GRACE_S = 60.0, 10.0
_SAY_S = 10.0  # between signs of life
_LOG = logging.getLogger("lepton.executor")


class _Stoppable(Observer):
    """Tells the loop when someone has asked the run to stop."""

    def __init__(self, runs: Runs, name: str) -> None:
        self._runs, self._name = runs, name

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]
        """Whether someone has; asked anew each time."""
        return self._runs.stop_requested(self._name)

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Notes that nobody is waited for."""
        self._runs.wait(self._name, 0)

    def on_waiting(self, sites: int) -> None:
        """Notes who is waited for."""
        self._runs.wait(self._name, sites)


def work(link: SuperLink, folder: Path, wake: Wake) -> None:
    """Runs whatever the SuperLink has waiting, for ever."""
    runs, back = Runs(folder / "runs"), time.monotonic() + _GATHER_S
    while True:
        with link.task() as given:
            if given is None:
                wake([])
                time.sleep(_IDLE_S)
                continue
            grid, context = given
            name = str(context.run_config.get("run", ""))
            try:
                runs.submitted(name)
                nodes = sites_of(runs, name, folder)
            except RunNotFound as error:
                _LOG.warning("The SuperLink has a run that nobody submitted: %s", error)
                continue
            except LeptonError as error:
                _LOG.warning("The run %s cannot be done: %s", name, error)
                continue
            signed = SignedGrid(grid, nodes, wake)
            _wait_for(signed, len(nodes), max(back, time.monotonic() + _GRACE_S))
            _run(signed, context, runs, name)


def sites_of(runs: Runs, name: str, folder: Path) -> dict[int, KnownNode]:
    """Returns the nodes that take part in a run, by Flower's number.

    Raises:
        RosterInvalid: the coordinator's roster is damaged.
    """
    roster = read_roster_files(folder / ROSTER_FILE, folder / ROOT_FILE)
    circles = Circles(runs, lambda: newest_studies(folder / STUDIES, roster))
    nodes = read_nodes(folder).items()
    return {node: site for node, site in nodes if circles.takes_part(site.name, name)}


def _wait_for(grid: Grid, sites: int, deadline: float) -> None:
    """Waits some time for all sites: after a restart they come back one by one."""
    while len(list(grid.get_node_ids())) < sites and time.monotonic() < deadline:
        time.sleep(_IDLE_S)


def _run(grid: Grid, context: Context, runs: Runs, name: str) -> None:
    submitted = runs.submitted(name)
    context.run_config = {
        "settings": submitted.settings,
        "run_folder": str(runs.folder(name).path),
    }
    watched = Observers([_Stoppable(runs, name), *_trackers(submitted, runs.folder(name))])
    observer = OBSERVER.set(watched)
    try:
        _perform(grid, context, runs, name)
    finally:
        OBSERVER.reset(observer)
        give_back_freed_memory()
        status = runs.state(name).status
        watched.on_end("interrupted" if status in ("running", "waiting") else status, [])


def _trackers(submitted: Submitted, folder: RunFolder) -> list[Observer]:
    """Returns the trackers of a run; none where its settings do not allow one here."""
    try:
        settings = parse_settings(json.loads(submitted.settings))
        check_submitted(settings.tracker)
    except SettingsError as error:
        _LOG.warning("The run %s is not tracked: %s", folder.path.name, error)
        return []
    return trackers_of(settings, folder, store=folder.path)


def _perform(grid: Grid, context: Context, runs: Runs, name: str) -> None:
    """Runs the ServerApp, and puts on disk how the run ended."""
    try:
        app(grid, context)
    except httpx.HTTPError:
        raise  # the SuperLink is gone: the run goes on once it is back
    except Exception as error:
        if is_full(error):
            raise  # the run goes on once there is room
        if runs.stop_requested(name):
            runs.end(name, "stopped")  # in the midst of a round, or while it waited for sites
            return
        _LOG.exception("The run %s failed.", name)
        known = isinstance(error, LeptonError)
        runs.end(name, "failed", error if known else RunError("See the coordinator's log."))
        return
    state = runs.state(name)
    runs.end(name, "finished" if state.rounds == state.of_rounds else "stopped")


def main() -> None:
    """Works for the coordinator's folder that is named on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("superlink")
    words = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    for noisy in ("alembic", "flwr", "httpx"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    keep_freed_pieces()
    private = words.folder / "gateway"
    authority = (private / "own.crt").read_text()
    secret = (private / SECRET).read_bytes()
    link = SuperLink(words.superlink, authority, secret, private)
    with grpc.insecure_channel(f"unix:{private / SOCKET}") as channel:
        try:
            work(link, words.folder, waker(channel))
        except (httpx.HTTPError, OSError) as error:
            # The coordinator starts this process again, and the run goes on.
            sys.exit(f"The executor cannot go on ({type(error).__name__}: {error}).")


def waker(channel: grpc.Channel) -> Wake:
    """Returns what tells the control service to wake sites, or now and again that we are alive.

    Where it cannot be told, sites look by themselves.
    """
    inside, said = InsideStub(channel), -_SAY_S

    def wake(sites: Iterable[str]) -> None:
        nonlocal said
        names = list(sites)
        if names or time.monotonic() >= said + _SAY_S:
            said = time.monotonic()
            with suppress(grpc.RpcError):
                inside.Wake(Woken(sites=names), timeout=_WAKE_S)

    return wake


if __name__ == "__main__":
    main()
