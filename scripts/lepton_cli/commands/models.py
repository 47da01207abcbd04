"""``lepton model`` and ``lepton site model``: a lead's own models, and trained ones, at sites."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from lepton_cli.commands.requests import FOLDER, JSON

if TYPE_CHECKING:
    from lepton_cli.desk.reviewed import Reviewed

_WHEEL = Annotated[Path, typer.Argument(help="The wheel; its signature lies beside it, as .sig.")]
_SITE_HELP = """Models that came as a signed wheel: review, approve, remove; and trained ones: base.

  lepton site model review my-site kidney-1.1-py3-none-any.whl
  lepton site model approve my-site kidney-1.1-py3-none-any.whl

A wheel is code: it runs in the trainer, beside the records. Read all of it.
"""
app = typer.Typer(
    help="Models of your own, and trained ones.",
    no_args_is_help=True,
)
site_app = typer.Typer(help=_SITE_HELP, no_args_is_help=True)


@app.command("sign")
def sign(
    wheel: Annotated[Path, typer.Argument(help="A wheel of Python source, with lepton.models.")],
    folder: Annotated[
        Path, typer.Option("--as", help="Your folder, from `lepton person init` and `join`.")
    ],
    passphrase_file: Annotated[
        Path | None, typer.Option("--passphrase-file", help="Its first line opens a sealed key.")
    ] = None,
) -> None:
    """Sign a wheel as a lead of the federation; WHEEL.sig goes to the sites with it."""
    from lepton_cli.control import identity
    from lepton_cli.desk.reviewed import signature_of
    from lepton_cli.keys import read_passphrase
    from lepton_common.durable import write_atomic
    from lepton_common.errors import NotAllowed
    from lepton_common.identity.endorsed import Endorsed, endorse
    from lepton_common.models.wheel import read_model_wheel

    found = read_model_wheel(wheel)
    key, roster, me = identity(folder, read_passphrase(passphrase_file))
    if "lead" not in me.roles:
        raise NotAllowed(f"The roster does not name {me.name} as a lead, so no site would take it.")
    endorsed = Endorsed(
        federation=roster.federation,
        by=me.name,
        package=found.package,
        version=found.version,
        sha256=found.sha256,
    )
    out = signature_of(wheel)
    write_atomic(out, endorse(key, endorsed).encode())
    print(f"Signed {found.package} {found.version} ({found.sha256}): {out}")


@app.command("base")
def base(
    model: Annotated[str, typer.Argument(help="A safetensors file, or a finished run.")],
    runs: Annotated[str, typer.Option(help="Folder of the runs.")] = "runs",
) -> None:
    """Keep a trained model on this machine, for runs that begin from it; tells its file."""
    from lepton_cli.starting import base_of
    from lepton_common.models.bases import keep_base

    print(keep_base(base_of(model, runs)))


@site_app.command("base")
def site_base(
    folder: FOLDER, file: Annotated[Path, typer.Argument(help="A safetensors file.")]
) -> None:
    """Put a trained model where runs find it that train a part of it; data, and no code.

    It counts from the next message on. Compare its digest with what the lead tells you: a run's
    model says it, as from.SHA256.
    """
    from lepton_cli.desk.folder import Desk
    from lepton_common.errors import BaseMissing
    from lepton_common.models.bases import BASES, keep_base

    try:
        data = file.read_bytes()
    except OSError:
        raise BaseMissing(f"There is no file {file} that can be read.") from None
    kept = keep_base(data, Desk(folder).folder / BASES)
    print(f"Runs of from.{kept.stem} may begin from it now, if the policy allows their model.")


@site_app.command("review")
def review(folder: FOLDER, wheel: _WHEEL, as_json: Annotated[bool, JSON] = False) -> None:
    """Verify a wheel's signature, and show what approving it would change. Imports nothing."""
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.reviewed import reviewed

    found = reviewed(Desk(folder), wheel)
    if as_json:
        print(json.dumps(found.record()))
        return
    _show(found)


@site_app.command("approve")
def approve(
    folder: FOLDER,
    wheel: _WHEEL,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; for scripts.")] = False,
) -> None:
    """Approve a wheel after having shown it; it takes the place of its earlier version.

    It counts from the next message on. `policy.models` still says what this site trains.
    """
    from lepton_cli.desk.folder import Desk
    from lepton_cli.desk.reviewed import reviewed
    from lepton_client.approved_models import approve as take

    desk = Desk(folder)
    found = reviewed(desk, wheel)
    _show(found)
    name = f"{found.wheel.package} {found.wheel.version}"
    if not yes:
        typer.confirm(f"Approve {name}, all of what stands above?", abort=True)
    take(desk.folder, found.wheel, found.by)
    print(f"{name} is approved, from the next message on, which also puts it into the audit log.")


@site_app.command("list")
def list_(folder: FOLDER, as_json: Annotated[bool, JSON] = False) -> None:
    """List what is approved, having checked each file against its hash."""
    from lepton_cli.desk.folder import Desk
    from lepton_client.approved_models import read_approved, read_sources
    from lepton_common.models.packaged import PackagedModel

    folder, rows = Desk(folder).folder, []
    for one in read_approved(folder).values():
        read_sources(folder, one)
        for model in sorted(one.builders):
            name = PackagedModel(one.package, model, one.sha256).name
            rows.append({"model": name, "version": one.version, "by": one.by})
    if as_json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(f"{row['model']}  version {row['version']}, signed by {row['by']}")
    if not rows:
        print("No model that came as a wheel is approved here.")


@site_app.command("remove")
def remove(
    folder: FOLDER, package: Annotated[str, typer.Argument(help="As `list` tells it.")]
) -> None:
    """Take an approval back: from the next message on, nothing more is trained with it."""
    from lepton_client.approved_models import remove as take_back

    take_back(folder, package)
    print(f"{package} is approved no more, from the next message on.")


def _show(found: "Reviewed") -> None:
    console = Console(highlight=False, soft_wrap=True)
    for line in found.sentences():
        console.print(line, markup=False, emoji=False)
    for line in found.diff:
        colour = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1])
        console.print(line, markup=False, emoji=False, style=colour)
