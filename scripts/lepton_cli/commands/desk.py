"""``lepton site status / log / ledger / doctor``: how a site is, what left, what it has spent."""

import json
from collections import defaultdict
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lepton_cli.commands.requests import FOLDER, JSON

if TYPE_CHECKING:
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.log import Line

STATUS_HELP = """How a site is: its federation, its agent, what left last, what is left of budgets.

Reads the folder, also while the agent works; asks nobody over the network (`lepton site doctor`
does). Log and ledger are verified on the way.
"""
LOG_HELP = """The audit log as a person reads it: what left when, how much, and what protects it.

The whole log is verified first; with one altered record nothing is shown. Protection is
[bold]noised[/] (differential privacy), [bold]masked[/] (only a sum of sites can be read),
[bold]protocol[/] and [bold]public[/] (nothing computed from records), or [bold red]nothing[/].
"""
LEDGER_HELP = """What was charged to the people in the data: by run, and against each budget.

The whole ledger is verified first, and held against the audit log. Charges are never refunded: a
round that failed after its charge stays spent. `lepton privacy verify` tells the ledger's head.
"""
DOCTOR_HELP = """Look at all that a site needs, one by one, and say what to do.

Site file and policy, permissions, key, log and ledger, roster, certificate, disk, the agent, the
trainer in its isolation, data and GPU as the trainer sees them, and the way to the coordinator:
its name, a connection, mutual TLS, and the clock. HTTPS_PROXY counts, as it does for the agent.
The exit code is 0 only where nothing is at fault; warnings do not count.
"""
_MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "fault": "[bold red]fault[/]",
          "skipped": "[dim]skipped[/]"}  # fmt: skip


def status(folder: FOLDER, as_json: Annotated[bool, JSON] = False) -> None:
    """Shows a site's state; `STATUS_HELP` is what the user reads."""
    from lepton_cli.desk.folder import Desk

    told = _status(Desk(folder))
    if as_json:
        print(json.dumps(told))
        return
    console = Console(highlight=False)
    table = Table(show_header=False, title=told["name"])
    agent = told["agent"]
    table.add_row("agent", "not running" if agent is None else f"running, process {agent}")
    for name in ("federation", "roster", "coordinator", "approval", "data"):
        table.add_row(name, str(told[name]))
    if told["quiet"]:
        table.add_row("now", f"[yellow]trains nothing from {told['quiet']}[/] (quiet hours)")
    for budget in told["budgets"]:
        table.add_row(
            f"epsilon {budget['what']}",
            f"{budget['left']:.3f} left of {budget['most']:g}, at delta {told['max_delta']:g}",
        )
    waiting = ", ".join(told["waiting"]) or "none"
    table.add_row("runs that wait for you", f"[bold]{waiting}[/]" if told["waiting"] else waiting)
    for last in told["last"]:
        table.add_row(last["at"], f"{last['run']} {last['what']}".strip())
    console.print(table)


def log(
    folder: FOLDER,
    number: Annotated[int, typer.Option("-n", min=1, help="How many records, the newest.")] = 20,
    run: Annotated[str | None, typer.Option("--run", help="Only those of one run.")] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Shows the audit log; `LOG_HELP` is what the user reads."""
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.log import lines

    desk = Desk(folder)
    found = lines(desk.records, run)
    if as_json:
        print(json.dumps([_plain(line) for line in found[-number:]]))
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in found[-number:]:
        round_ = "" if line.round is None else f" round {line.round}"
        size = f" · {line.bytes:,} bytes · {line.protection}" if line.bytes else ""
        said = f"{line.at:%Y-%m-%d %H:%M:%S}  {line.run}{round_}  {line.what}{size}"
        console.print(said, markup=False, style="bold red" if line.bare else None)
    total = sum(line.bytes for line in found)
    console.print(
        f"[green]Verified[/]: {len(desk.records)} records are signed and in place. Shown: "
        f"{min(number, len(found))} of {len(found)}, with which {total:,} bytes left in all."
    )


def ledger(folder: FOLDER, as_json: Annotated[bool, JSON] = False) -> None:
    """Shows the privacy ledger; `LEDGER_HELP` is what the user reads."""
    from lepton_cli.desk.budgets import budgets, spent_by_data
    from lepton_cli.desk.folder import Desk

    desk = Desk(folder)
    held, left = spent_by_data(desk.charged), budgets(desk)
    runs = _by_run(desk)
    if as_json:
        document = {
            "runs": runs,
            "data": [asdict(row) for row in held],
            "budgets": [{**asdict(budget), "left": budget.left} for budget in left],
            "delta": desk.file.policy.max_delta,
        }
        print(json.dumps(document))
        return
    console = Console(highlight=False)
    table = Table(title="Charged, by run")
    table.add_column("run", overflow="fold")  # whole, to be typed again
    for name in ("data", "charges", "released", "epsilon", "delta"):
        table.add_column(name, no_wrap=True)
    for row in runs:
        table.add_row(
            row["run"], row["data"], str(row["charges"]), str(row["released"]),
            f"{row['epsilon']:.3f}", f"{row['delta']:g}",
        )  # fmt: skip
    console.print(table)
    table = Table("data", "version", "charges", "epsilon", "delta",
                  title="Spent by the people in each version of the data")  # fmt: skip
    for spent in held:
        table.add_row(spent.data, spent.version[:12], str(spent.charges), f"{spent.epsilon:.3f}",
                      f"{spent.delta:g}")  # fmt: skip
    console.print(table)
    for budget in left:
        console.print(
            f"epsilon {budget.what}: {budget.spent:.3f} spent of {budget.most:g}, "
            f"[bold]{budget.left:.3f} left[/] (at delta {desk.file.policy.max_delta:g})"
        )


def doctor(
    folder: FOLDER,
    offline: Annotated[
        bool, typer.Option("--offline", help="Leave out what needs the network.")
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Its first line opens a sealed key.")
    ] = None,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Looks at a site; `DOCTOR_HELP` is what the user reads."""
    from lepton_cli.desk.doctor import examine
    from lepton_cli.desk.examined import Examined
    from lepton_cli.keys import read_passphrase

    console = Console(highlight=False, soft_wrap=True)
    found = []
    site = Examined(folder, read_passphrase(passphrase_file))
    for finding in examine(site, offline=offline):
        found.append(finding)
        if not as_json:
            console.print(f"{_MARKS[finding.level]} {finding.check}: ", end="")
            console.print(finding.said, markup=False)
            if finding.do:
                console.print(f"  -> {finding.do}", markup=False)
    if as_json:
        print(json.dumps([asdict(finding) for finding in found]))
    faults = [finding for finding in found if finding.level == "fault"]
    if faults:
        raise typer.Exit(faults[0].exit_code)


def _status(desk: "Desk") -> dict[str, Any]:
    from lepton_cli.desk.budgets import budgets
    from lepton_cli.desk.log import lines
    from lepton_cli.desk.requests import all_asked
    from lepton_client.running import agent_of

    roster, file = desk.roster, desk.file
    who = roster.coordinator
    left = [line for line in lines(desk.records) if line.bytes or line.what.startswith("refused")]
    return {
        "name": file.name,
        "agent": agent_of(desk.folder),
        "federation": roster.federation,
        "roster": f"version {roster.version}, good until {roster.until or 'always'}",
        "coordinator": f"{who.name} at {who.hosts[0]}:{who.port}" if who and who.hosts else None,
        "approval": file.launch.approval if file.launch else None,
        "quiet": file.launch.quiet(datetime.now().time()) if file.launch else None,
        "data": f"{file.data.id} ({file.data.dataset}), public size {file.public_size}",
        "budgets": [{**asdict(budget), "left": budget.left} for budget in budgets(desk)],
        "max_delta": file.policy.max_delta,
        "waiting": [a.run for a in all_asked(desk) if a.state == "waits"] if file.launch else [],
        "last": [_plain(line) for line in left[-3:]],
    }


def _by_run(desk: "Desk") -> list[dict[str, Any]]:
    """Returns what each run was charged, on each version of the data."""
    from lepton_common.privacy.accounting import epsilon
    from lepton_common.privacy.events import merge, read_event
    from lepton_common.privacy.plan import for_people

    records = desk.charged.records
    names = {r.body["version"]: str(r.body["dataset"]) for r in records if r.kind == "data"}
    released = {r.body["charge"] for r in records if r.kind == "release"}
    groups = defaultdict(list)
    for charge in desk.charged.charges:
        groups[str(charge.body["run"]), str(charge.body["version"])].append(charge)
    rows = []
    for (run, version), charges in groups.items():
        events = [for_people(str(c.body["unit"]), read_event(c.body["event"])) for c in charges]
        delta = min(float(charge.body["delta"]) for charge in charges)
        began = min(float(c.body.get("charged_at", c.time)) for c in charges)
        rows.append({
            "run": run,
            "data": names.get(version, "of an earlier key"),
            "from": datetime.fromtimestamp(began, UTC).isoformat(" ", "seconds"),
            "charges": len(charges),
            "released": sum(charge.hash in released for charge in charges),
            "steps": sum(event.steps for event in events),
            "epsilon": epsilon(tuple(merge(events)), delta),
            "delta": delta,
        })  # fmt: skip
    return rows


def _plain(line: "Line") -> dict[str, Any]:
    return {**asdict(line), "at": line.at.isoformat(" ", "seconds")}
