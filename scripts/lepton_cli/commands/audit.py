"""``lepton audit``: proof that a run's logs are whole."""

from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="Verify audit logs, offline.", no_args_is_help=True)


@app.callback()
def _audit() -> None:
    """Makes `audit` a group of commands, whatever their number."""


@app.command("verify")
def verify(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or 'last'.")] = "last",
    runs: Annotated[str, typer.Option("--runs", help="Folder of run folders.")] = "runs",
) -> None:
    """Verify every log of a run: hashes, signatures, order, witnessed heads, charges."""
    from lepton_cli.run import find_run
    from lepton_cli.summary import upper

    found = find_run(run, runs)
    evidence = found.evidence
    table = Table("log", "records", "releases", "epsilon", title=f"Audit of {found.name}")
    table.add_row("server", str(evidence.server_records), "", "")
    for site in evidence.sites.values():
        spent = "-" if site.epsilon is None else upper(site.epsilon, 3)
        table.add_row(site.name, str(site.records), str(site.releases), spent)
    if evidence.totals.sites > len(evidence.sites):
        more = evidence.totals.sites - len(evidence.sites)
        table.add_row(f"… {more:,} more, which spent no more", "", "", "")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"[green]Verified[/]: every record is signed and in place, and all {evidence.witnessed} "
        "heads that the server witnessed are there."
    )
    console.print(f"Note the head of the server's log, to find a later cut: {evidence.head}")
