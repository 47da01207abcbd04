"""``lepton runs`` and ``lepton report``: what has been run, and how it went."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

_RUNS = typer.Option("--runs", help="Folder of run folders.")
_JSON = typer.Option("--json", help="Print one JSON document.")


def list_command(
    runs: Annotated[str, _RUNS] = "runs", as_json: Annotated[bool, _JSON] = False
) -> None:
    """List all runs, oldest first."""
    from lepton_cli.apps.record import AppRun
    from lepton_cli.run import list_runs

    found = list_runs(runs)
    if as_json:
        rows: list[dict[str, object]] = [
            {"run": run.name, "status": run.status, "outside_the_door": True}
            if isinstance(run, AppRun)
            else {"run": run.name, "status": run.status, **run.metrics}
            for run in found
        ]
        print(json.dumps(rows))
        return
    table = Table(title=f"Runs in {runs}")
    table.add_column("run", overflow="fold")  # whole, to be typed again
    for heading in ("status", "task", "privacy", "rounds", "reached"):
        table.add_column(heading)
    for run in found:
        if isinstance(run, AppRun):
            app = escape(f"app {run.about['app']['name']}")
            rounds = str(run.rounds or "-")
            table.add_row(run.name, run.status, app, "[bold red]outside[/]", rounds, "-")
            continue
        privacy = run.settings.privacy
        done = len(run.rounds) or int(run.folder.statistics.exists())
        table.add_row(
            run.name,
            run.status,
            run.settings.task,
            f"epsilon {privacy.epsilon:g}" if privacy.epsilon else "[bold red]none[/]",
            f"{done}/{run.settings.rounds}",
            f"{run.headline.name} {run.reached:.3f}" if run.metrics else "-",
        )
    Console(highlight=False).print(table)


def show_command(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or 'last'.")] = "last",
    runs: Annotated[str, _RUNS] = "runs",
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Print one run's tables, from its verified logs, and write its report anew."""
    from lepton_cli.apps.presentation import app_document, print_app_summary, write_app_report
    from lepton_cli.apps.record import AppRun
    from lepton_cli.evaluation import print_evaluation
    from lepton_cli.report import write_report
    from lepton_cli.run import find_any
    from lepton_cli.statistics import print_statistics, read_statistics
    from lepton_cli.summary import as_json_document, print_summary
    from lepton_common.errors import RunNotFound

    found = find_any(run, runs)
    if isinstance(found, AppRun):
        if as_json:
            print(json.dumps(app_document(found)))
            return
        write_app_report(found)
        print_app_summary(found)
        return
    if found.settings.statistics.asked:
        if as_json:
            print(json.dumps(read_statistics(found)))
        elif found.settings.statistics.evaluates is not None:
            print_evaluation(found)
        else:
            print_statistics(found)
        return
    if not found.rounds:
        raise RunNotFound(f"The run {found.name} has no finished round yet.")
    if as_json:
        print(json.dumps(as_json_document(found)))
        return
    write_report(found)
    print_summary(found)
