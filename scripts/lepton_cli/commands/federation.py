"""``lepton federation``: the roster and the studies, which k of n partners sign."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

from lepton_cli.commands.identities import MODULE, PASSPHRASE, TOKEN

if TYPE_CHECKING:
    from lepton_cli.federation import Draft, FederationFolder
    from lepton_common.identity.roster import Roster

_HELP = """Who belongs to a federation, signed by k of its n partners.

Neither the coordinator nor one partner alone can add a site. In order:

  lepton federation key alice.pem                           [dim]each partner[/]
  lepton site init my-site --name hospital-a --dataset ...  [dim]each site[/]
  lepton server init my-server --host fl.example.org        [dim]the server[/]
  lepton federation init hospitals --name hospitals --threshold 2 \\
    --partner alice.pem.pub --partner bob.pem.pub --partner carol.pem.pub \\
    --add my-server/join.json --add my-site/join.json ...
  lepton federation sign hospitals --key alice.pem          [dim]and another[/]
  lepton federation publish hospitals
  lepton site join my-site hospitals --root DIGEST          [dim]each, once[/]

The folder holds no secret; send it around as you like. What a partner sends
back is one .sig file for drafts/. Ask for the root's digest by another way
than the folder came.
"""
app = typer.Typer(help=_HELP, no_args_is_help=True, rich_markup_mode="rich")

_FOLDER = Annotated[Path, typer.Argument(help="The federation's folder.")]
_OPENS = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="Its first line opens a sealed key, or its token."),
]
_UNTIL = typer.Option("--until", help="Last day of the roster, as 2027-11-30; a year from now.")
_ADD = typer.Option("--add", help="A request to join: join.json of a site, server or person.")
_PARTNER = typer.Option("--partner", help="A partner's .pub file.")


@app.command("key")
def key_command(
    path: Annotated[Path, typer.Argument(help="File for the key; FILE.pub beside it is public.")],
    passphrase_file: PASSPHRASE = None,
    token: TOKEN = None,
    module: MODULE = None,
) -> None:
    """Make a partner's key. It signs rosters and studies, and stays with the partner."""
    from lepton_cli.keys import key_place
    from lepton_common.durable import write_atomic
    from lepton_common.errors import KeyUnreadable

    if path.exists():
        raise KeyUnreadable(f"{path} is there already; choose another file.")
    place = key_place(passphrase_file, token, module)
    key = place.make(path.stem)
    key.save(path, place.passphrase)
    public = path.with_name(f"{path.name}.pub")
    write_atomic(public, f"{key.public_hex}\n".encode())
    print(f"Keep {path} to yourself; send {public} to who founds the federation.")


@app.command("init")
def init_command(
    folder: _FOLDER,
    name: Annotated[str, typer.Option("--name", help="The federation's name.")],
    threshold: Annotated[int, typer.Option("--threshold", help="How many partners must sign.")],
    partner: Annotated[list[Path], _PARTNER],
    add: Annotated[list[Path], _ADD],
    until: Annotated[str | None, _UNTIL] = None,
) -> None:
    """Draft the first version of a roster."""
    from lepton_cli.drafting import in_a_year, read_day, read_entries, read_partners
    from lepton_cli.federation import FederationFolder
    from lepton_common.errors import RosterInvalid
    from lepton_common.identity.roster import Coordinator, Member, Person, Roster
    from lepton_common.strict import parse

    entries = read_entries(add)
    coordinators = [vars(entry) for entry in entries if isinstance(entry, Coordinator)]
    if len(coordinators) > 1:
        raise RosterInvalid("A roster has one coordinator; give one join.json of `server init`.")
    by_name = sorted(entries, key=lambda entry: entry.name)
    found, faults = parse(
        Roster,
        {
            "federation": name,
            "version": 1,
            "until": read_day(until) or in_a_year(),
            "partners": vars(read_partners(partner, threshold)),
            "coordinator": coordinators[0] if coordinators else None,
            "members": [vars(e) for e in by_name if isinstance(e, Member)],
            "people": [vars(e) for e in by_name if isinstance(e, Person)],
        },
    )
    if found is None:
        raise RosterInvalid(" ".join(faults))
    _drafted(folder, FederationFolder(folder).begin(found))


@app.command("propose")
def propose_command(
    folder: _FOLDER,
    add: Annotated[list[Path] | None, _ADD] = None,
    remove: Annotated[
        list[str] | None, typer.Option("--remove", help="A site or person to revoke, by name.")
    ] = None,
    partner: Annotated[list[Path] | None, _PARTNER] = None,
    threshold: Annotated[
        int | None, typer.Option("--threshold", help="With --partner: how many must sign.")
    ] = None,
    until: Annotated[str | None, _UNTIL] = None,
) -> None:
    """Draft the next version: add, revoke, rotate a key (--add it anew), change the partners.

    Whoever is given by --partner takes the place of all partners there were; the new ones and
    the old ones must sign.
    """
    from lepton_cli.drafting import read_day, read_entries, read_partners
    from lepton_cli.federation import FederationFolder
    from lepton_common.errors import SettingsError

    if not (add or remove or partner or until):
        raise SettingsError("Nothing to propose: give --add, --remove, --partner or --until.")
    if bool(partner) != (threshold is not None):
        raise SettingsError("Give --partner (all of them) and --threshold together.")
    here = FederationFolder(folder)
    before = {draft.path: draft.text for draft in here.drafts()}
    path = here.propose(
        add=read_entries(add or []),
        remove=remove or [],
        partners=read_partners(partner, threshold) if partner and threshold else None,
        until=read_day(until),
    )
    if path.read_text(encoding="utf-8") != before.get(path, path.read_text(encoding="utf-8")):
        print(f"An earlier draft of {path.name} is gone: what it changed is not in this one.")
    _drafted(folder, path)


@app.command("study")
def study_command(
    folder: _FOLDER,
    file: Annotated[Path, typer.Argument(help="The study, as YAML: purpose, sites, budget, ...")],
) -> None:
    """Draft a study: some sites, for one purpose, until a day, within a budget."""
    from lepton_cli.drafting import today
    from lepton_cli.federation import FederationFolder
    from lepton_common.errors import StudyInvalid
    from lepton_common.identity.study import Study
    from lepton_common.strict import parse
    from lepton_common.yaml_text import load_yaml, yaml_fault

    try:
        values = load_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise StudyInvalid(f"Cannot read the study {file} ({type(error).__name__}).") from None
    except yaml.YAMLError as error:
        raise StudyInvalid(f"The study {file} is no YAML: {yaml_fault(error)}.") from None
    study, faults = parse(Study, values)
    if study is None:
        raise StudyInvalid(" ".join(faults))
    _drafted(folder, FederationFolder(folder).propose_study(study, today()))


@app.command("sign")
def sign_command(
    folder: _FOLDER,
    key: Annotated[Path, typer.Option("--key", help="Your key, from `lepton federation key`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Sign without asking.")] = False,
    passphrase_file: _OPENS = None,
) -> None:
    """Show what each draft would change, and sign it once you have said yes."""
    from lepton_cli.drafting import today
    from lepton_cli.federation import FederationFolder
    from lepton_cli.keys import read_passphrase
    from lepton_common.errors import Interrupted, RosterInvalid
    from lepton_common.identity.keys import SigningKey

    here = FederationFolder(folder)
    secret = SigningKey.load(key, read_passphrase(passphrase_file))
    drafts = [draft for draft in here.drafts() if secret.public_hex not in draft.signed]
    if not drafts:
        raise RosterInvalid(f"No draft in {folder} waits for this key's signature.")
    for draft in drafts:
        _show_draft(here, draft)
        if not yes and not typer.confirm("Sign this?"):
            raise Interrupted("Not signed.")
        print(f"Signed: {here.sign(draft, secret, today())}")


@app.command("publish")
def publish_command(folder: _FOLDER) -> None:
    """Publish the drafts that enough partners have signed."""
    from lepton_cli.drafting import today
    from lepton_cli.federation import FederationFolder
    from lepton_common.errors import RosterInvalid

    here = FederationFolder(folder)
    drafts = here.drafts()
    if not drafts:
        raise RosterInvalid(f"{folder} holds no draft; make one by `propose` or `study`.")
    for draft in drafts:
        print(f"Published: {here.publish(draft, today())}")
    print(f"Root of the federation, to compare by another way: {here.root}")


@app.command("show")
def show_command(folder: _FOLDER) -> None:
    """Show the published roster, checked, and what waits for signatures."""
    from lepton_cli.federation import FederationFolder
    from lepton_common.errors import RosterInvalid

    here, console = FederationFolder(folder), Console(highlight=False)
    roster = here.roster
    if roster is None and not here.drafts():
        raise RosterInvalid(
            f"{folder} is no federation's folder; `lepton federation init` makes one."
        )
    if roster is None:
        console.print("Nothing is published yet.")
    else:
        _show_roster(console, roster)
        console.print(f"Root: {here.root}")
    for draft in here.drafts():
        _show_draft(here, draft)


def _drafted(folder: Path, path: Path) -> None:
    from lepton_cli.federation import FederationFolder

    here = FederationFolder(folder)
    (draft,) = [draft for draft in here.drafts() if draft.path == path]
    _show_draft(here, draft)
    print(f"Next: lepton federation sign {folder} --key KEY")


def _show_draft(here: "FederationFolder", draft: "Draft") -> None:
    console = Console(highlight=False, soft_wrap=True)
    waits = f"{draft.missing} more signatures needed" if draft.missing else "may be published"
    console.print(f"[bold]Draft {draft.path.name}[/]: {len(draft.signed)} signed, {waits}")
    if draft.kind == "study":
        for name, value in vars(here.study_of(draft)).items():
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            console.print(f"  {name}: {text}", markup=False)
        return
    before, after = here.roster, here.roster_of(draft)
    if before is None:
        _show_roster(console, after)
        return
    for line in _changes(before, after):
        console.print(f"  {line}", markup=False)
    fresh = [m.name for m in after.members if m not in before.members]
    for name in (*fresh, *(p.name for p in after.people if p not in before.people)):
        for study in here.studies_naming(name):
            console.print(f"  {name} is in the study {study} by name", markup=False)


def _changes(before: "Roster", after: "Roster") -> list[str]:
    """Returns one line for each thing that differs."""
    lines = [f"version {before.version} -> {after.version}"]
    for what, old, new in (
        ("site", before.members, after.members),
        ("person", before.people, after.people),
    ):
        was, will = {e.name: e for e in old}, {e.name: e for e in new}
        lines += [f"{what} {n} added, key {will[n].public_key}" for n in will.keys() - was.keys()]
        lines += [f"{what} {n} REVOKED" for n in was.keys() - will.keys()]
        lines += [
            f"{what} {n} changed, key {will[n].public_key}"
            for n in was.keys() & will.keys()
            if was[n] != will[n]
        ]
    for name in ("until", "coordinator", "partners"):
        if getattr(before, name) != getattr(after, name):
            lines.append(f"{name} changed: {getattr(after, name)}")
    return lines


def _show_roster(console: Console, roster: "Roster") -> None:
    title = f"{roster.federation}, version {roster.version}, good until {roster.until or 'always'}"
    table = Table("name", "what", "key", title=title)
    if roster.coordinator is not None:
        where = ", ".join(f"{h}:{roster.coordinator.port}" for h in roster.coordinator.hosts)
        key = roster.coordinator.public_key
        table.add_row(roster.coordinator.name, f"coordinator at {where}", key[:16])
    for member in roster.members:
        table.add_row(member.name, "site", member.public_key[:16])
    for person in roster.people:
        table.add_row(person.name, ", ".join(person.roles), person.public_key[:16])
    for key in roster.partners.keys:
        table.add_row("", "partner", key[:16])
    console.print(table)
    console.print(f"{roster.partners.threshold} of {len(roster.partners.keys)} partners must sign.")
