"""``lepton evaluate``: a model's figures at the sites, by one sum over those who are held back."""

import json
from typing import Annotated

import typer

HELP = """Ask the sites of a simulated run how good its last model is, on people it never saw.

With [cyan]data.held_back=0.2[/] each site keeps a fifth of its people from training. An evaluation
asks for one sum over them: confusion counts, binned scores, clipped losses or errors, whatever the
task's figures are told from. It goes through secure aggregation, with noise that bounds what it
tells of any person; each site charges it to its ledger, where its [cyan]policy.statistics[/]
allows it. Each figure comes with the error that the noise gives it. Privacy and secure aggregation
are the run's own, epsilon is 1; to be chosen are

  [cyan]privacy[/], [cyan]secagg[/], [cyan]engine[/], [cyan]federation[/], [cyan]train.device[/],

  [cyan]statistics.bins[/] (20: of each histogram of scores; the fewer, the less noise)

[bold]Examples[/]

  lepton simulate task=breast_cancer sites=5 data.held_back=0.3 privacy=none

  lepton evaluate last privacy.epsilon=4

  lepton evaluate last privacy=none   (exact, in red, and where the sites' policies allow it)

Without privacy each model is evaluated once: two sums that differ by a site would tell its part.
Then: lepton audit verify last, lepton privacy verify RUN/sites/NAME.
"""


def command(
    run: Annotated[str, typer.Argument(help="Name or path of a run, or 'last'.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of its own.")] = None,
    runs: Annotated[str, typer.Option("--runs", help="Folder of run folders.")] = "runs",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, and nothing else.")
    ] = False,
) -> None:
    """Asks for the figures of a run's model; `HELP` is what the user reads."""
    from lepton_cli.evaluation import print_evaluation
    from lepton_cli.evaluation_run import evaluate
    from lepton_cli.run import find_run
    from lepton_cli.statistics import read_statistics

    found = evaluate(find_run(run, runs), overrides or [])
    if as_json:
        print(json.dumps({"folder": str(found.folder.path), **read_statistics(found)}))
    else:
        print_evaluation(found)
