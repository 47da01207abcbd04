"""``lepton server start``, ``site start``, ``submit`` and ``run``: real sites over a network."""

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lepton_common.printable import printable

PASSPHRASE = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Its first line opens a sealed key, or its token."),
]
_AS = Annotated[
    Path,
    typer.Option("--as", help="Your folder, from `lepton person init` and `join`."),
]
_RUN = Annotated[str, typer.Argument(help="The run's name, as `lepton run list` tells it.")]
_JSON = typer.Option("--json", help="Print one JSON document a line, and nothing else.")
_STATISTICS = "statistics.asked=true"

SUBMIT_HELP = """Submit an experiment to real sites, with the words of `lepton simulate`.

  lepton submit --as dora task=breast_cancer privacy=record privacy.epsilon=1

Settings that only a simulation has (how data is split, its policy, its engine) do not count: each
site has its own data and its own policy, and refuses what goes beyond it.

Statistics of the sites' data: `lepton stats --as dora`; or here, with statistics.asked=true.
"""
run_app = typer.Typer(help="Runs at a coordinator.", no_args_is_help=True)


def server_start(
    folder: Annotated[Path, typer.Argument(help="The coordinator's folder, joined.")],
    passphrase_file: PASSPHRASE = None,
    metrics_port: Annotated[
        int | None,
        typer.Option("--metrics-port", help="Loopback port for /metrics and /health; off."),
    ] = None,
) -> None:
    """Start the coordinator and keep it up; Ctrl-C ends it, and starting again goes on."""
    from lepton_cli.keys import read_passphrase
    from lepton_common.errors import KeyUnreadable
    from lepton_server.gateway.alone import check_port, only_coordinator
    from lepton_server.gateway.server import KEY_FILE, Server

    _log()
    if not (folder / KEY_FILE).exists():  # before a lock is left in a folder that is none
        raise KeyUnreadable(f"{folder} holds no coordinator's key; 'lepton server init' makes one.")
    with only_coordinator(folder):
        server = Server(folder, read_passphrase(passphrase_file), metrics_port)
        coordinator, roster = server.published.coordinator, server.published.roster
        check_port(coordinator.port)
        where = f"{coordinator.hosts[0]}:{coordinator.port}"
        print(f"Coordinator of {roster.federation} at {where}; Ctrl-C ends it.", flush=True)
        server.run(_stopped())


def site_start(
    folder: Annotated[Path, typer.Argument(help="The site's folder, joined.")],
    passphrase_file: PASSPHRASE = None,
) -> None:
    """Start the site's agent: it answers what the site's policy allows; Ctrl-C ends it."""
    from lepton_cli.keys import read_passphrase
    from lepton_client.agent import run_agent
    from lepton_client.running import only_agent
    from lepton_client.site import SITE_FILE, read_site_file

    _log()
    read_site_file(folder / SITE_FILE)  # before a lock is left in a folder that is none
    with only_agent(folder):
        run_agent(folder.resolve(), _stopped(), read_passphrase(passphrase_file))


def submit(
    overrides: Annotated[list[str], typer.Argument(help="name=value, as in `lepton simulate`.")],
    folder: _AS,
    study: Annotated[str | None, typer.Option(help="Study that the run is part of.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end.")] = False,
    as_json: Annotated[bool, _JSON] = False,
    passphrase_file: PASSPHRASE = None,
) -> None:
    """Submits a run; `SUBMIT_HELP` is what the user reads."""
    from lepton_cli.compose import compose_settings
    from lepton_cli.control import control, proposal_of
    from lepton_cli.keys import read_passphrase
    from lepton_cli.statistics_run import statistics_overrides
    from lepton_common.control.control_pb2 import SubmitRequest

    if _STATISTICS in overrides:
        overrides = statistics_overrides(overrides)
    settings = compose_settings(overrides)
    passphrase = read_passphrase(passphrase_file)
    proposal = proposal_of(folder, settings, study, passphrase)
    with control(folder, passphrase) as service:
        run = service.Submit(SubmitRequest(proposal=proposal))
        if as_json:
            tell_json(run)
        else:
            print(f"Submitted: {run.name}", flush=True)
        if wait:
            watch(service, run.name, folder, _teller(as_json))


@run_app.command("list")
def list_command(
    folder: _AS,
    as_json: Annotated[bool, _JSON] = False,
    passphrase_file: PASSPHRASE = None,
) -> None:
    """List the coordinator's runs."""
    from lepton_cli.control import control
    from lepton_cli.keys import read_passphrase
    from lepton_common.control.control_pb2 import ListRequest

    with control(folder, read_passphrase(passphrase_file)) as service:
        runs = service.List(ListRequest()).runs
    if as_json:
        print(json.dumps([_fields(run) for run in runs]))
        return
    whole = (Column(heading, no_wrap=True) for heading in ("run", "status", "rounds", "by"))
    table = Table(*whole, Column("metrics, or what ended it", overflow="fold"))
    for run in runs:
        told = run.error if run.status == "failed" else _short(run)
        cells = (run.name, run.status, f"{run.rounds}/{run.of_rounds}", run.by, told)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console(highlight=False).print(table)


@run_app.command("watch")
def watch_command(
    name: _RUN,
    folder: _AS,
    as_json: Annotated[bool, _JSON] = False,
    passphrase_file: PASSPHRASE = None,
) -> None:
    """Watch a run to its end; the exit code tells how it ended."""
    from lepton_cli.control import control
    from lepton_cli.keys import read_passphrase

    with control(folder, read_passphrase(passphrase_file)) as service:
        watch(service, name, folder, _teller(as_json))


@run_app.command("stop")
def stop_command(name: _RUN, folder: _AS, passphrase_file: PASSPHRASE = None) -> None:
    """End a run after its current round; what was finished is kept."""
    from lepton_cli.control import control
    from lepton_cli.keys import read_passphrase
    from lepton_common.control.control_pb2 import RunName

    with control(folder, read_passphrase(passphrase_file)) as service:
        run = service.Stop(RunName(name=name))
    going = run.status in ("running", "waiting")
    print(f"{name} ends after its current round." if going else f"{name} is {run.status} already.")


@run_app.command("fetch")
def fetch_command(
    name: _RUN,
    file: Annotated[Path, typer.Argument(help="New file: safetensors, or JSON of statistics.")],
    folder: _AS,
    passphrase_file: PASSPHRASE = None,
) -> None:
    """Fetch the last finished round's model; of a run of `lepton stats`, what sites answered."""
    from lepton_cli.control import control, fetch
    from lepton_cli.keys import read_passphrase
    from lepton_common.durable import write_atomic

    with control(folder, read_passphrase(passphrase_file)) as service:
        data = fetch(service, name)
    write_atomic(file, data)
    print(f"{len(data)} bytes in {file}")


def watch(
    service: Any,  # noqa: ANN401
    name: str,
    folder: Path,
    tell: Callable[[Any], None],
) -> None:
    """Tells what changes, and raises what ended the run if it failed.

    Raises:
        Interrupted: by Ctrl-C, which ends the watching alone.
        LeptonError: as the coordinator named it.
    """
    from lepton_common import errors
    from lepton_common.control.control_pb2 import RunName

    run = None
    try:
        for run in service.Watch(RunName(name=name)):
            tell(run)
    except KeyboardInterrupt:
        raise errors.Interrupted(
            f"{name} goes on at the coordinator. To end it: lepton run stop {name} --as {folder}"
        ) from None
    if run is not None and run.status == "failed":
        kind, _, said = run.error.partition(": ")
        raise getattr(errors, kind, errors.RunError)(said)


def _teller(as_json: bool) -> Callable[[Any], None]:
    return tell_json if as_json else tell


def tell_json(run: Any) -> None:  # noqa: ANN401
    """Prints how a run stands, as one JSON document."""
    print(json.dumps(_fields(run)), flush=True)


def tell(run: Any) -> None:  # noqa: ANN401
    """Prints how a run stands, in one line."""
    said = [f"{run.status}: round {run.rounds} of {run.of_rounds}", _short(run)]
    if run.missing:
        without = (f"{site} ({error})" for site, error in sorted(run.missing.items()))
        said.append(f"without {', '.join(without)}")
    print(printable("  ".join(filter(None, said))), flush=True)


def _fields(run: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "name": run.name,
        "status": run.status,
        "rounds": run.rounds,
        "of_rounds": run.of_rounds,
        "by": run.by,
        "error": run.error,
        "metrics": json.loads(run.metrics),
        "missing": dict(run.missing),
    }


def _short(run: Any) -> str:  # noqa: ANN401
    metrics = json.loads(run.metrics)
    return "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _log() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s"
    )
    for noisy in ("httpx", "flwr"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def _stopped() -> Callable[[], bool]:
    """Returns whether someone has asked this process to end, by Ctrl-C or by its supervisor."""
    asked: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda signum, _: asked.append(signum))
    return lambda: bool(asked)
