"""``lepton site requests / approve / refuse / rehearse``: what is asked of a site, and its word."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.rehearsed import Rehearsed
    from lepton_cli.desk.requests import Asked, Cost
    from lepton_common.settings import Settings

FOLDER = Annotated[Path, typer.Argument(help="The site's folder, joined.")]
JSON = typer.Option("--json", help="Print one JSON document, and nothing else.")
_RUN = Annotated[str, typer.Argument(help="The run's name, as `lepton site requests` tells it.")]
_YES = Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")]

REQUESTS_HELP = """The runs that were proposed to a site, and what becomes of each here.

  lepton site requests my-site           all of them, in one table
  lepton site requests my-site RUN       one: what it does, what it would spend, what would leave

[bold]waits[/]: for `lepton site approve` or `refuse`. [bold]automatic[/]: launch.approval in
site.yaml lets in what the policy allows. [bold]beyond the policy[/]: site.yaml, a study or the
roster forbids it, whatever you say; the reason stands beside it. Nothing is changed by looking.
"""
APPROVE_HELP = """Approve a run, after having shown what it would do and spend here.

It takes effect at the run's next message: a run that waits begins within seconds. Approval is for
this proposal as its lead has signed it; whatever the coordinator asks beyond it is refused. What
site.yaml forbids cannot be approved: change site.yaml, if you mean to.
"""
REFUSE_HELP = """Refuse a run; in the midst of it, this withdraws consent.

It takes effect at the run's next message: nothing more is trained or leaves. What has left stays
with the coordinator, and what was charged stays spent. `approve` takes it back.
"""
REHEARSE_HELP = """Go through one round of a run on the site's own data, and send nothing.

  lepton site rehearse my-site RUN
  lepton site rehearse my-site PROPOSAL.json

The site works on a copy of its folder, which is thrown away: nothing is charged or logged. The
trainer is the real one, on the real data, as confined as ever. Coordinator and other sites are
made up here; approval and quiet hours are not asked for. Says what would have left and what
protects it, what would be charged, and how long it took.
"""


def requests(
    folder: FOLDER,
    run: Annotated[str | None, typer.Argument(help="One run, in detail.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Shows proposals; `REQUESTS_HELP` is what the user reads."""
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.requests import all_asked, asked

    desk = Desk(folder)
    if run is not None:
        _show(desk, asked(desk, run), as_json=as_json)
        return
    rows = [found.row() for found in all_asked(desk)]
    if as_json:
        print(json.dumps(rows))
        return
    if not rows:
        print("No run was proposed to this site yet.")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("run", no_wrap=True)
    table.add_column("what is asked")
    table.add_column("state", no_wrap=True)
    for row in rows:
        run, *about, state = _cells(row)
        table.add_row(run, ", ".join(cell for cell in about if cell != "-"), state)
    console = Console(highlight=False, soft_wrap=True)
    console.print(table, soft_wrap=False)
    for row in rows:
        for reason in row["reasons"][:1]:
            console.print(f"{row['run']}: {reason['name']}: {reason['said']}", markup=False)


def approve(folder: FOLDER, run: _RUN, yes: _YES = False) -> None:
    """Approves; `APPROVE_HELP` is what the user reads."""
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.requests import asked

    desk = Desk(folder)
    found = asked(desk, run)
    _show(desk, found)
    beyond = found.against[1:] if found.state == "refused" else found.against
    if beyond:
        raise beyond[0]
    if not yes:
        typer.confirm(f"Approve {run}?", abort=True)
    desk.proposals.decide(run, "approved")
    print(f"{run} is approved, from its next message on.")


def refuse(folder: FOLDER, run: _RUN, yes: _YES = False) -> None:
    """Refuses; `REFUSE_HELP` is what the user reads."""
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.requests import asked

    desk = Desk(folder)
    _show(desk, asked(desk, run))
    if not yes:
        typer.confirm(f"Refuse {run}?", abort=True)
    desk.proposals.decide(run, "refused")
    print(f"{run} is refused, from its next message on.")


def rehearse(
    folder: FOLDER,
    what: Annotated[str, typer.Argument(metavar="RUN|PROPOSAL", help="A run, or a file.")],
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Its first line opens a sealed key.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Rehearses; `REHEARSE_HELP` is what the user reads."""
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.rehearsal import rehearse as go_through
    from lepton_cli.desk.requests import asked, judged
    from lepton_cli.keys import read_passphrase

    desk = Desk(folder)
    path = Path(what)
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        known = [run for run in desk.proposals.names() if desk.proposals.text(run) == text]
        found = judged(desk, known[0] if known else "rehearsal", text)
    else:
        found = asked(desk, what)
    result = go_through(desk, found, read_passphrase(passphrase_file))
    if as_json:
        print(json.dumps(result.record()))
        return
    _print_rehearsed(result)


def _show(desk: "Desk", found: "Asked", *, as_json: bool = False) -> None:
    from lepton_cli.desk.requests import cost, too_dear

    spends = cost(desk, found)
    row = found.row()
    if spends is not None:
        dear = too_dear(spends)
        row["noise_multiplier"] = spends.plan.noise_multiplier
        row["rounds_charged"], row["rounds_left"] = spends.taken, spends.rounds
        row["budgets"] = [{**asdict(b), "left": b.left} for b in spends.budgets]
        row["reasons"] += [{"name": type(dear).__name__, "said": str(dear)}] if dear else []
    if as_json:
        print(json.dumps(row))
        return
    console = Console(highlight=False, soft_wrap=True)
    table = Table(show_header=False, title=found.run)
    for name, cell in zip(
        ("run", "who", "study", "task", "model", "rounds", "privacy", "sums", "state"),
        _cells(row),
        strict=True,
    ):
        table.add_row(name, cell)
    console.print(table)
    if spends is not None:
        _print_cost(console, spends)
    for reason in row["reasons"]:
        console.print(f"{reason['name']}: {reason['said']}", markup=False, style="bold red")
    for line in [] if found.settings is None else _what_it_does(desk, found.settings):
        console.print(f"- {line}", markup=False)


def _print_cost(console: Console, spends: "Cost") -> None:
    title = f"This site's budgets, as epsilon at delta {spends.plan.delta:g}"
    table = Table("budget", "of", "left now", "spent after", "left after", title=title)
    for budget in spends.budgets:
        after = budget.after or 0.0
        table.add_row(
            budget.what, f"{budget.most:g}", f"{budget.left:.3f}", f"{after:.3f}",
            f"{max(budget.most - after, 0):.3f}" if budget.holds else "[bold red]too much[/]",
        )  # fmt: skip
    console.print(table)


def _what_it_does(desk: "Desk", settings: "Settings") -> list[str]:
    """Returns what the run does at this site, and what leaves it, in sentences."""
    file, asked = desk.file, settings.statistics
    said = [_task_here(settings, file.data.id)]
    if settings.private:
        said.append(
            f"Each {file.data.unit}'s part is clipped to {settings.privacy.clipping_norm:g} and "
            "noise is added before anything leaves; the plan pays for "
            f"{_count(settings.privacy.spare_rounds, 'round')} more, which crashes may cost."
        )
    update = "one sum" if asked.asked else "one update"
    update += ", noised" if settings.private else ", WITHOUT NOISE"
    if settings.secure:
        said.append(
            f"What leaves a round: {update}, masked so that only the sum of all sites can be read; "
            "keys and shares of the masks; a receipt with counts of rounds and hashes."
        )
    else:
        said.append(f"What leaves a round: {update}, READABLE for the coordinator; a receipt.")
    if not settings.private and not asked.asked:
        said.append("And the mean training loss.")
    if file.launch is not None and file.launch.quiet_hours:
        said.append(f"Nothing is trained from {', '.join(file.launch.quiet_hours)}.")
    return said


def _task_here(settings: "Settings", data: str) -> str:
    train, asked = settings.train, settings.statistics
    where = f", in a cohort of {settings.cohort} sites"
    if asked.asked and asked.evaluates is None:
        return f"Once, this site sums statistics of all people in {data}{where}; it trains nothing."
    if asked.asked:
        return (
            f"Once, this site sums how well {settings.model} of the run {asked.evaluates} does on "
            f"the people that {data} holds back from training{where}; it trains nothing."
        )
    how = (
        _count(train.local_steps, "step")
        if train.local_steps
        else _count(train.local_epochs or 1, "pass", "es")
    )
    return (
        f"Each round, this site trains {settings.model} on {data} for {how}{where}; "
        f"{_count(settings.rounds, 'round')} in all."
    )


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else plural}"


def _cells(row: dict[str, Any]) -> list[str]:
    privacy = {"none": "NO privacy"}.get(
        row.get("privacy", ""), f"{row.get('privacy', '-')} privacy"
    )
    if row.get("epsilon") is not None:
        privacy += f", epsilon {row['epsilon']:g}, delta {row['delta']:g}"
    secure = {True: "secure sums", False: "OPEN updates"}.get(
        row.get("secure_aggregation", ""), "-"
    )
    told = [str(row.get(name) or "-") for name in ("run", "by", "study", "task", "model")]
    rounds = _count(row["rounds"], "round") if "rounds" in row else "-"
    return [*told, rounds, privacy if "privacy" in row else "-", secure, row["state"]]


def _print_rehearsed(result: "Rehearsed") -> None:
    console = Console(highlight=False, soft_wrap=True)
    title = f"What would have left in a round of {result.run}"
    table = Table("what", "bytes", "what protects it", title=title)
    for line in result.left:
        style = "bold red" if line.bare else None
        table.add_row(line.what, f"{line.bytes:,}", line.protection, style=style)
    console.print(table)
    for said in result.sentences():
        console.print(said, markup=False)
