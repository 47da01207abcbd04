"""``lepton evidence``: one signed archive of a run, and its verification on any machine."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click
import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

if TYPE_CHECKING:
    from lepton_cli.packs.make import Made
    from lepton_cli.packs.verify import Checked

_JSON = typer.Option("--json", help="Print one JSON document, and nothing else.")
_HELP = """Evidence of a run, for whoever answers for it.

  lepton evidence RUN --site FOLDER          a site's pack, signed with its key
  lepton evidence RUN --server FOLDER        the coordinator's, for a run over a network
  lepton evidence RUN                        the coordinator's, for a simulation
  lepton evidence verify PACK... --root DIGEST
"""


class _MakeByDefault(TyperGroup):
    """Takes `lepton evidence RUN` for `lepton evidence make RUN`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Puts the command in where only a run is named."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_MakeByDefault, help=_HELP, no_args_is_help=True)


@app.command("make")
def make(
    run: Annotated[str, typer.Argument(help="The run's name; of a simulation also its path.")],
    site: Annotated[Path | None, typer.Option("--site", help="The site's folder.")] = None,
    server: Annotated[
        Path | None, typer.Option("--server", help="The coordinator's folder.")
    ] = None,
    runs: Annotated[str, typer.Option("--runs", help="Folder of simulated runs.")] = "runs",
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            help="The signed study of the run; else the one here that it was proposed in.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="File to write; RUN-NAME.evidence.zip.")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", help="Say what the pack would disclose, and write nothing.")
    ] = False,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Show a site's records of other runs in full too."),
    ] = False,
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Its first line opens a sealed key.")
    ] = None,
) -> None:
    """Make a pack (also without this word)."""
    from lepton_cli.keys import read_passphrase
    from lepton_cli.packs.make import make_site_pack
    from lepton_cli.packs.verify import verify_pack
    from lepton_common.durable import write_atomic
    from lepton_common.errors import LeptonError, SettingsError

    if site is not None and server is not None:
        raise SettingsError("Give --site or --server: each has a pack of its own.")
    if whole and site is None:
        raise SettingsError("--whole is for a site's pack; the coordinator's log is of one run.")
    passphrase = read_passphrase(passphrase_file)
    if site is not None:
        made = make_site_pack(site, run, study=study, passphrase=passphrase, whole=whole)
    else:
        made = _coordinators(run, server, runs, study, passphrase)
    path = out or Path(f"{made.manifest.run}-{made.manifest.signer}.evidence.zip")
    if not show:
        write_atomic(path, made.data)
        try:
            verify_pack(path, made.root)
        except LeptonError:
            path.unlink()  # what its own maker cannot verify is no evidence
            raise
    _print_made(made, None if show else path)


def _coordinators(
    run: str, server: Path | None, runs: str, study: Path | None, passphrase: str | None
) -> "Made":
    from lepton_cli.packs.make import make_coordinator_pack
    from lepton_cli.run import find_run
    from lepton_common.identity.keys import SigningKey
    from lepton_common.settings_rules import parse_settings
    from lepton_server.gateway.published import STUDIES
    from lepton_server.gateway.runs import Runs
    from lepton_server.gateway.server import KEY_FILE

    if server is not None:
        kept = Runs(server / "runs")
        settings = parse_settings(json.loads(kept.submitted(run).settings))
        key = SigningKey.load(server / KEY_FILE, passphrase)
        return make_coordinator_pack(
            kept.folder(run), settings, key, study=study, studies=server / STUDIES
        )
    found = find_run(run, runs)
    _ = found.evidence  # every log of the run, or nothing
    key = SigningKey.load(found.folder.server_key)
    return make_coordinator_pack(found.folder, found.settings, key, study=study)


def _print_made(made: "Made", path: Path | None) -> None:
    console, manifest = Console(highlight=False), made.manifest
    table = Table("member", "bytes", title=f"{manifest.signer} on the run {manifest.run}")
    for member in manifest.members:
        table.add_row(member.name, f"{member.size:,}")
    console.print(table)
    for name, chain in made.chains.items():
        told = f"{name}: {chain.in_full} of {chain.of} records in full."
        if chain.in_full < chain.of:
            told += (
                " Of the others, which belong to other runs, hash and signature: whoever can guess "
                "such a record to the last digit can confirm it, and nobody else learns more than "
                "their number."
            )
        console.print(told, soft_wrap=True)
    if made.simulated:
        console.print("A simulated federation: its roster was made by this machine alone.")
    if made.lacks:
        console.print(
            f"[yellow]Without the study {made.lacks}, of which no version that is here covers the "
            "run: give its file by --study.[/]",
            soft_wrap=True,
        )
    console.print(f"Root to verify it with: {made.root}", soft_wrap=True)
    if path is None:
        console.print("Nothing was written.")
    else:
        console.print(f"Pack: {path} ({len(made.data):,} bytes)", soft_wrap=True)


@app.command("verify")
def verify(
    packs: Annotated[list[Path], typer.Argument(help="One pack, or several of the same run.")],
    root: Annotated[
        str, typer.Option("--root", help="The roster's root, which came by another way.")
    ],
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Verify packs offline: every byte, signature, record, charge, and what packs say together."""
    from lepton_cli.packs.pages import PROVES, PROVES_ALONE, PROVES_NOT
    from lepton_cli.packs.verify import verify_pack, verify_together

    checked = [verify_pack(path, root.strip()) for path in packs]
    witnessed = verify_together(checked)
    anchored = any(c.manifest.kind == "coordinator" for c in checked)
    sites = any(c.manifest.kind == "site" for c in checked)
    proves = PROVES if witnessed else PROVES_ALONE
    if as_json:
        rows = [{"pack": str(c.pack.path), **_row(c)} for c in checked]
        print(json.dumps({"packs": rows, "witnessed": witnessed, "proves": proves,
                          "proves_not": PROVES_NOT}))  # fmt: skip
        return
    _print_verified(checked)
    console = Console(highlight=False)
    if anchored and sites:
        console.print(f"Anchors: {witnessed} heads that the coordinator witnessed are there.")
    else:
        console.print(
            "Anchors: not checked; verify the coordinator's pack and the sites' packs together."
        )
    for told in (proves, PROVES_NOT):
        console.print(told, soft_wrap=True)


def _row(checked: "Checked") -> dict[str, object]:
    facts, manifest = checked.facts, checked.manifest
    plan = facts.get("plan", {})
    model = facts.get("model") or {}
    return {
        "kind": manifest.kind,
        "signer": manifest.signer,
        "run": manifest.run,
        "simulated": facts["simulated"],
        "records": facts["audit"]["records"],
        "in_full": facts["audit"]["in_full"],
        "charges": plan.get("charges"),
        "epsilon": plan.get("epsilon"),
        "delta": plan.get("delta"),
        "model": model.get("sha256"),
        "pages_compared": checked.pages,
        "withheld_within": facts["audit"]["withheld_within"]
        + facts.get("ledger", {}).get("withheld_within", 0),
        "head": facts["audit"]["head"],
    }


def _amid(amid: object) -> str:
    return f", [bold red]{amid} withheld amid them[/]" if amid else ""


def _print_verified(checked: "list[Checked]") -> None:
    from lepton_cli.packs.pages import shown_epsilon

    title = f"Verified: {checked[0].manifest.run}"
    if checked[0].facts["simulated"]:
        title += " (a simulated federation)"
    table = Table("pack of", "members", "records", "charges", "epsilon", "model", title=title)
    for one in checked:
        row = _row(one)
        spent = row["epsilon"]
        told = "-" if spent is None else shown_epsilon(spent)  # type: ignore[arg-type]
        at = "" if row["delta"] is None else f" (delta {row['delta']:g})"
        table.add_row(
            f"{row['kind']} {row['signer']}",
            str(len(one.manifest.members)),
            f"{row['in_full']} of {row['records']} in full" + _amid(row["withheld_within"]),
            "-" if row["charges"] is None else str(row["charges"]),
            told + at,
            str(row["model"] or "-")[:16],
        )
    Console(highlight=False).print(table)
    for one in checked:
        if not one.pages:
            print(f"{one.pack.path}: made by another version of Lepton; its pages were not "
                  "compared with its facts.")  # fmt: skip
