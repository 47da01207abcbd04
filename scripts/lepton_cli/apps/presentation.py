"""What a third-party app's run came to: tables, one JSON document, and its report, in red."""

import json
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lepton_cli.apps.record import STATEMENT, AppRun
from lepton_cli.rendering import render
from lepton_common.durable import write_atomic
from lepton_common.flower.strategy_results import Rounds

_MOST_ROWS = 12
_MOST_LINES = 400
_TITLES = {
    "train_metrics_clientapp": "Training at the nodes, aggregated",
    "evaluate_metrics_clientapp": "Evaluation at the nodes, aggregated",
    "evaluate_metrics_serverapp": "Evaluation at the server",
}


def write_app_report(run: AppRun) -> None:
    """Writes ``report.html`` into the run folder."""
    lines = run.log.read_text(encoding="utf-8").splitlines()
    html = render(
        "app_report.html.j2",
        run=run,
        about=run.about,
        outcome=run.outcome,
        statement=STATEMENT,
        exchanges=run.exchanges,
        tables=[table for result in run.results for table in _tables(result)],
        lines=lines[-_MOST_LINES:],
        left_out=max(0, len(lines) - _MOST_LINES),
    )
    write_atomic(run.report, html.encode())


def app_document(run: AppRun) -> dict[str, Any]:
    """Returns the run for scripts."""
    return {
        "run": str(run.path),
        "status": run.status,
        "outside_the_door": True,
        "statement": STATEMENT,
        "app": run.about["app"]["name"],
        "nodes": run.about["nodes"],
        "config": run.about["config"],
        "rounds": run.rounds,
        "exchanges": [
            {
                "round": each.round,
                "type": each.type,
                "sent": each.sent,
                "answered": each.answered,
                "failed": each.failed,
                "seconds": each.seconds,
            }
            for each in run.exchanges
        ],
        "results": run.results,
    }


def print_app_summary(run: AppRun) -> None:
    """Prints the tables, that all was outside the door, and where things lie."""
    console = Console(highlight=False)
    about = run.about
    console.print(_traffic_table(run, f"{about['app']['name']} over {about['nodes']} nodes"))
    for result in run.results:
        for title, names, rows in _tables(result):
            console.print(_metrics_table(title, names, rows))
    console.print(f"[bold red]{STATEMENT}[/]")
    if run.status != "finished":
        console.print(f"[bold red]This run is {run.status}.[/]")
    for what, path in (("Run folder", run.path), ("Log", run.log), ("Report", run.report)):
        console.print(f"{what + ':':11} {escape(str(path))}", soft_wrap=True)


def _traffic_table(run: AppRun, title: str) -> Table:
    table = Table(title=escape(title))
    for heading in ("round", "messages", "sent", "answered", "failed", "seconds"):
        table.add_column(heading, justify="left" if heading == "messages" else "right")
    exchanges = run.exchanges
    for each in exchanges[-_MOST_ROWS:]:
        failed = f"[bold red]{each.failed}[/]" if each.failed else "0"
        number = "-" if each.round is None else str(each.round)
        seconds = f"{each.seconds:.2f}"
        counts = (str(each.sent), str(each.answered), failed, seconds)
        table.add_row(number, escape(each.type), *counts)
    if len(exchanges) > _MOST_ROWS:
        table.caption = f"the last {_MOST_ROWS} of {len(exchanges)}; all: report.html"
    return table


def _metrics_table(title: str, names: list[str], rows: list[tuple[int, list[str]]]) -> Table:
    table = Table(title=title)
    table.add_column("round", justify="right")
    for name in names:
        table.add_column(escape(name), justify="right")
    for number, values in rows[-_MOST_ROWS:]:
        table.add_row(str(number), *map(escape, values))
    return table


def _tables(result: dict[str, Rounds]) -> list[tuple[str, list[str], list[tuple[int, list[str]]]]]:
    """Returns (title, names, rows of (round, values)) for each kind that has metrics."""
    tables = []
    for kind, title in _TITLES.items():
        rounds = result.get(kind, {})
        names = list(dict.fromkeys(name for metrics in rounds.values() for name in metrics))
        rows = [
            (number, [_shown(metrics.get(name)) for name in names])
            for number, metrics in sorted(rounds.items())
        ]
        if names:
            tables.append((title, names, rows))
    return tables


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else json.dumps(value)
