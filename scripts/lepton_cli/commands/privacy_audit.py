"""``lepton privacy audit``: attacks on our own training that would show a broken promise."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

if TYPE_CHECKING:
    from lepton_cli.privacy_audit.audit import Audit
    from lepton_cli.privacy_audit.claim import Claim

HELP = """Audit this installation's private training: does it keep the epsilon it claims?

  lepton privacy audit --epsilon 3 --rounds 50 --sample-rate 0.25

  lepton privacy audit last

With a [cyan]RUN[/] its plan (noise, clipping norm, sample rate, steps) is audited; else the plan of
the options, as [cyan]lepton privacy plan[/] computes it. Either way the training code that runs at
real sites is run on [bold]made-up records[/]: no site's data is read, and nothing of the result is
about anybody.

[bold]Conformance[/] holds clipping, noise and sampling against their laws; a faultless installation
fails each check that depends on chance once in a million audits. [bold]One run[/] trains on
canaries, each in the data or not by a secret coin, and guesses the coins from what is released: the
[bold]certified[/] lower bound on epsilon holds with 95 % confidence (Steinke, Nasr and Jagielski
2023), but never gets far above 6. The [bold]estimate[/] beside it is far sharper and
certifies nothing. [bold]Membership inference[/] and [bold]gradient inversion[/] show what noise
does to two attacks.

Exit code 4 if a check fails or the certified bound exceeds the claimed epsilon, else 0.
"""
_DEFAULTS: dict[str, Any] = {
    "delta": 1e-5,
    "rounds": 50,
    "local_steps": 1,
    "sample_rate": 1.0,
    "clipping_norm": 1.0,
}


def command(
    run: Annotated[
        str | None, typer.Argument(help="Name or path of a run, or 'last'; none: the options.")
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option("--epsilon", help="Target of the plan.  [3, without a RUN]")
    ] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option("--noise-multiplier", help="In place of --epsilon.")
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="Delta of the guarantee.  [1e-5]")
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", help="Rounds of the run.  [50]")] = None,
    local_steps: Annotated[
        int | None, typer.Option("--local-steps", help="Steps in a round.  [1]")
    ] = None,
    sample_rate: Annotated[
        float | None,
        typer.Option("--sample-rate", help="Chance of a record to be in a step.  [1]"),
    ] = None,
    clipping_norm: Annotated[
        float | None, typer.Option("--clipping-norm", help="L2 bound on a gradient.  [1]")
    ] = None,
    canaries: Annotated[
        int, typer.Option("--canaries", help="Made-up records: 1000 to 20000.")
    ] = 5000,
    device: Annotated[
        str | None,
        typer.Option(
            "--device", help="Where to train: auto, cpu, cuda, mps.  [the RUN's, or auto]"
        ),
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="Folder of run folders.")] = "runs",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document, and nothing else.")
    ] = False,
) -> None:
    """Prints an audit; `HELP` is what the user reads.

    Raises:
        AuditFailed: something contradicts the claim.
    """
    from lepton_cli.privacy_audit.presentation import document, print_audit
    from lepton_common.errors import AuditFailed

    options = {
        "epsilon": epsilon,
        "noise_multiplier": noise_multiplier,
        "delta": delta,
        "rounds": rounds,
        "local_steps": local_steps,
        "sample_rate": sample_rate,
        "clipping_norm": clipping_norm,
    }
    given = {name: value for name, value in options.items() if value is not None}
    claim = _claim(run, runs, given, canaries)
    found = _audit(claim, canaries, device or claim.device)
    faults = found.faults
    if as_json:
        print(json.dumps(document(found), allow_nan=False))
        if faults:
            raise typer.Exit(AuditFailed.exit_code)
        return
    print_audit(found)
    if faults:
        raise AuditFailed(" ".join(faults))


def _claim(run: str | None, runs: str, given: dict[str, Any], canaries: int) -> "Claim":
    from lepton_cli.privacy_audit.claim import Wanted, claim_of_options, claim_of_run
    from lepton_cli.run import find_run
    from lepton_common.errors import SettingsError
    from lepton_common.strict import parse

    if run is not None and given:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingsError(f"A run has a plan of its own: drop {options}, or the run.")
    values = {"epsilon": None, "noise_multiplier": None, **_DEFAULTS, **given}
    if "noise_multiplier" not in given:
        values["epsilon"] = given.get("epsilon", 3.0)
    wanted, faults = parse(Wanted, {**values, "canaries": canaries})
    if wanted is None:
        raise SettingsError(faults)
    return claim_of_options(wanted) if run is None else claim_of_run(find_run(run, runs))


def _audit(claim: "Claim", canaries: int, device: str) -> "Audit":
    """Audits with a bar for each layer, where someone is watching."""
    from collections.abc import Callable

    from rich.progress import Progress

    from lepton_cli.privacy_audit.audit import run_audit
    from lepton_common.device import pick_device

    with Progress(
        console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as progress:

        def layer(name: str, parts: int) -> Callable[[], None]:
            task = progress.add_task(name, total=parts)
            return lambda: progress.advance(task)

        return run_audit(claim, canaries, pick_device(device), layer)
