"""Runs a third-party Flower app as it is: its folder, its output and its errors are its own."""

import contextlib
import sys
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from flwr.app import Context, RecordDict
from flwr.serverapp import ServerApp

from lepton_cli.about import machine_facts
from lepton_cli.apps.output import logged
from lepton_cli.apps.presentation import write_app_report
from lepton_cli.apps.record import AppRun
from lepton_cli.apps.request import AppRequest
from lepton_cli.run import new_folder, stamp
from lepton_common.errors import AppFailed, AppInvalid, Interrupted
from lepton_common.flower.project import load_server_app
from lepton_common.flower.strategy_results import Rounds, watched_results
from lepton_server.engines.guest import GuestApp, GuestGrid
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.engines.traffic import Exchange

_SERVER_NODE = 1


def run_app(request: AppRequest, *, quiet: bool = False) -> AppRun:
    """Runs an app to its end and writes its run folder and report.

    Args:
        request: what to run.
        quiet: show on standard error what the app writes to standard output.

    Raises:
        AppInvalid: a component cannot be imported.
        AppFailed: the ServerApp raised, or ended its process.
        Interrupted: Ctrl-C.
    """
    run = AppRun(new_folder(request.runs / f"{stamp()}-{_safe(request.project.name)}-outside"))
    with _as_the_app(request.project.folder), logged(run.log, quiet=quiet):
        try:
            client_app, server_app = _load(request)
        except BaseException:
            # Nothing ran: what is wrong is on the screen, and a folder would be no run.
            run.log.unlink(missing_ok=True)
            run.path.rmdir()
            raise
        run.begin(_about(request))
        _execute(request, run, client_app, server_app)
    return run


def _execute(request: AppRequest, run: AppRun, client_app: GuestApp, server_app: ServerApp) -> None:
    first = _SERVER_NODE + 1
    nodes = {
        first + index: {"partition-id": index, "num-partitions": request.nodes}
        for index in range(request.nodes)
    }
    engine = InProcessGrid(
        client_app,
        nodes,
        workers=request.workers,
        threads_per_site=request.threads_per_site,
    )
    grid = GuestGrid(engine)
    context = Context(
        run_id=engine.run.run_id,
        node_id=_SERVER_NODE,
        node_config={},
        state=RecordDict(),
        run_config=dict(request.config),
    )
    results: list[dict[str, Rounds]] = []
    try:
        with watched_results() as results:
            server_app(grid, context)
    except KeyboardInterrupt:
        _end(run, grid.traffic.exchanges, results, {"status": "stopped"})
        raise Interrupted(
            "Stopped by Ctrl-C. Flower's strategies cannot go on where they stopped: start the app "
            f"again. What it printed: {run.log}"
        ) from None
    except SystemExit as error:
        if error.code not in (None, 0):
            raise _failed(run, grid, results, f"ended its process with {error.code!r}") from error
    except Exception as error:
        _print_traceback(error, error.__traceback__)
        raise _failed(run, grid, results, f"raised {_named(error)}") from error
    finally:
        engine.close()
    _end(run, grid.traffic.exchanges, results, {"status": "finished"})


def _failed(run: AppRun, grid: GuestGrid, results: list[dict[str, Rounds]], how: str) -> AppFailed:
    failure = AppFailed(f"The ServerApp {how}. What it printed: {run.log}")
    outcome = {"status": "failed", "error": type(failure).__name__, "message": str(failure)}
    _end(run, grid.traffic.exchanges, results, outcome)
    return failure


def _end(
    run: AppRun,
    exchanges: list[Exchange],
    results: list[dict[str, Rounds]],
    outcome: dict[str, str],
) -> None:
    run.end(exchanges, results, outcome)
    sys.stdout.flush()
    write_app_report(run)


def _load(request: AppRequest) -> tuple[GuestApp, ServerApp]:
    """Imports both components.

    Raises:
        AppInvalid: one cannot be imported, or is something else.
    """
    project = request.project
    client_app = GuestApp(project.clientapp, project.folder, dict(request.config))
    reference = project.clientapp
    try:
        client_app.load()
        reference = project.serverapp
        return client_app, load_server_app(reference, project.folder)
    except AppInvalid:
        raise
    except (Exception, SystemExit) as error:
        _print_traceback(error, error.__traceback__)
        raise AppInvalid(
            f"'{reference}' cannot be imported: its module raised {_named(error)}."
        ) from error


def _about(request: AppRequest) -> dict[str, object]:
    project = asdict(request.project)
    return {
        **machine_facts(),
        "outside_the_door": True,
        "app": {**project, "folder": str(request.project.folder)},
        "nodes": request.nodes,
        "config": dict(request.config),
        "overridden": list(request.overridden),
        "workers": request.workers,
        "threads_per_site": request.threads_per_site,
    }


@contextlib.contextmanager
def _as_the_app(folder: Path) -> Iterator[None]:
    """Works in the app's folder, as where `flwr run .` is called; gives the path back after."""
    path = list(sys.path)
    try:
        with contextlib.chdir(folder):
            yield
    finally:
        sys.path[:] = path


def _print_traceback(error: BaseException, trace: TracebackType | None) -> None:
    """Prints what the app raised, without our own frame."""
    below = trace.tb_next if trace is not None else None
    traceback.print_exception(type(error), error, below)


def _named(error: BaseException) -> str:
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _safe(name: str) -> str:
    """Returns a project's name as a part of a folder's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)
