"""``lepton stats``: federated statistics, by one noised sum over the sites of a simulation."""

import json
from typing import Annotated

import typer

HELP = """Ask simulated sites for statistics of their data, with differential privacy.

Counts, label balance, and of each feature histogram, quantiles, mean, variance and missing rate,
over public ranges. The sites answer with one sum inside secure aggregation, whose noise they share;
each charges it to its ledger. Settings are those of 'lepton simulate', and

  [cyan]privacy.epsilon[/] (1), [cyan]statistics.bins[/] (10),

  [cyan]statistics.features[/] (null: all; the fewer, the less noise)

[bold]Examples[/]

  lepton stats task=breast_cancer sites=5 privacy.epsilon=1

  lepton stats task=heart_disease data.partition=natural sites=4 'statistics.features=[0,3]'

  lepton stats task=digits secagg=none   (each site adds noise of its own, the server reads answers)

Then: lepton audit verify RUN, lepton privacy verify RUN/sites/NAME.
"""


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the run.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, and nothing else.")
    ] = False,
) -> None:
    """Asks what the overrides say; `HELP` is what the user reads."""
    from lepton_cli.statistics import print_statistics, read_statistics
    from lepton_cli.statistics_run import ask

    run = ask(overrides or [])
    if as_json:
        print(json.dumps({"folder": str(run.folder.path), **read_statistics(run)}))
    else:
        print_statistics(run)
