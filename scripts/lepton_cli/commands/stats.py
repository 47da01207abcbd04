"""``lepton stats``: federated statistics, by one noised sum over simulated or real sites."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

HELP = """Ask sites for statistics of their data, with differential privacy.

Counts, label balance, and of each feature histogram, quantiles, mean, variance and missing rate,
over public ranges. The sites answer with one sum inside secure aggregation, whose noise they share;
each charges it to its ledger. Settings are those of 'lepton simulate'
(with --as: of 'lepton submit'), and

  [cyan]privacy.epsilon[/] (1), [cyan]statistics.bins[/] (10),

  [cyan]statistics.features[/] (null: all; the fewer, the less noise)

[bold]Examples[/]

  lepton stats task=breast_cancer sites=5 privacy.epsilon=1

  lepton stats task=heart_disease data.partition=natural sites=4 'statistics.features=[0,3]'

  lepton stats task=digits secagg=none   (each site adds noise of its own, the server reads answers)

  lepton stats --as dora task=breast_cancer sites=3   (real sites, whose policies say what they
  answer; 'lepton run fetch RUN FILE --as dora' has it again, as JSON)

Then, of a simulation: lepton audit verify RUN, lepton privacy verify RUN/sites/NAME.
"""


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings of the run.")] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--as", help="Ask real sites: your folder, from `lepton person init`."),
    ] = None,
    study: Annotated[
        str | None, typer.Option(help="With --as: study that the run is part of.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, and nothing else.")
    ] = False,
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", help="With --as: its first line opens a sealed key."),
    ] = None,
) -> None:
    """Asks what the overrides say; `HELP` is what the user reads."""
    from lepton_cli.statistics import print_statistics, read_statistics
    from lepton_cli.statistics_run import ask
    from lepton_common.errors import SettingsError

    words = overrides or []
    if folder is not None:
        _ask_sites(words, folder, study, passphrase_file, as_json=as_json)
        return
    if study is not None or passphrase_file is not None:
        raise SettingsError("--study and --passphrase-file are for real sites: add --as FOLDER.")
    run = ask(words)
    if as_json:
        print(json.dumps({"folder": str(run.folder.path), **read_statistics(run)}))
    else:
        print_statistics(run)


def _ask_sites(
    words: list[str],
    folder: Path,
    study: str | None,
    passphrase_file: Path | None,
    *,
    as_json: bool,
) -> None:
    from lepton_cli.commands.deployment import tell, watch
    from lepton_cli.keys import read_passphrase
    from lepton_cli.statistics import print_answer
    from lepton_cli.statistics_run import ask_sites

    def wait(service: Any, name: str) -> None:  # noqa: ANN401
        if not as_json:
            print(f"Submitted: {name}", flush=True)
        watch(service, name, folder, (lambda _: None) if as_json else tell)

    found = ask_sites(words, folder, study, read_passphrase(passphrase_file), wait)
    if as_json:
        print(json.dumps(found))
        return
    print_answer(found, f"Again, as JSON: lepton run fetch {found['run']} FILE --as {folder}")
