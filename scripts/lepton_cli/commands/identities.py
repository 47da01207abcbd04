"""``lepton site|server|person init`` and ``join``: keys, made where they stay, and the roster."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

_FOLDER = Annotated[Path, typer.Argument(help="A new folder: keys are made in it and stay there.")]
_NAME = Annotated[str, typer.Option("--name", help="The name in the roster.")]
PASSPHRASE = Annotated[
    Path | None,
    typer.Option(
        "--passphrase-file", help="Its first line seals the key; with --token: the token's PIN."
    ),
]
TOKEN = Annotated[
    str | None, typer.Option("--token", help="Makes the key inside the token with this label.")
]
MODULE = Annotated[
    Path | None, typer.Option("--module", help="The PKCS#11 library of the token's maker.")
]

site_app = typer.Typer(help="A site: its keys, data and policy.", no_args_is_help=True)
server_app = typer.Typer(help="The coordinator of a federation.", no_args_is_help=True)
person_app = typer.Typer(help="Someone who proposes runs or reads evidence.", no_args_is_help=True)


@site_app.command("init")
def site_init(
    folder: _FOLDER,
    name: _NAME,
    dataset: Annotated[str, typer.Option("--dataset", help="A data set in Lepton's catalog.")],
    data_id: Annotated[
        str | None, typer.Option("--data-id", help="Your own name for the data; as --dataset.")
    ] = None,
    root: Annotated[
        str | None, typer.Option("--root", help="Folder that holds the data, or made-up.")
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--source", help="YAML file that says where your own table is: docs/data.md."),
    ] = None,
    public_size: Annotated[
        int | None,
        typer.Option(
            "--public-size", min=1, help="Size to make public, rounded down to a power of two."
        ),
    ] = None,
    passphrase_file: PASSPHRASE = None,
    token: TOKEN = None,
    module: MODULE = None,
) -> None:
    """Make a site's folder: keys, site.yaml with a strict policy, and a request to join.

    Read site.yaml and change it as you see fit: it is what no request can go beyond.
    """
    from lepton_cli.joining import make_site
    from lepton_cli.keys import key_place
    from lepton_client.connectors.sources import read_source
    from lepton_common.datasets.source import MADE_UP

    path = make_site(
        folder,
        name,
        data_id=data_id or dataset,
        dataset=dataset,
        root=str(Path(root).resolve()) if root and root != MADE_UP else root,
        source=read_source(source) if source else None,
        public_size=public_size,
        place=key_place(passphrase_file, token, module),
    )
    print(f"Read {folder / 'site.yaml'}: it says what this site allows.")
    _say_next(path, "site", folder)


@site_app.command("rekey")
def site_rekey(
    old: Annotated[Path, typer.Argument(help="The site's folder; its private key may be lost.")],
    folder: _FOLDER,
    passphrase_file: PASSPHRASE = None,
    token: TOKEN = None,
    module: MODULE = None,
) -> None:
    """Make a site a new folder with a new key: the old one is lost, stolen, or moves to a token.

    Takes over site.yaml, and all that the old folder has on record as spent. End the site first,
    and keep the old folder: its log is evidence.
    """
    from lepton_cli.joining import rekey_site
    from lepton_cli.keys import key_place

    path, charges = rekey_site(old, folder, key_place(passphrase_file, token, module))
    print(f"{charges} charges went over; each counts for everyone in the site's data from now on.")
    print("In the roster, the new key takes the old one's place:")
    print(f"  lepton federation propose FEDERATION --add {path}")
    _say_next(path, "site", folder)


@server_app.command("init")
def server_init(
    folder: _FOLDER,
    host: Annotated[
        list[str], typer.Option("--host", help="A name or address that sites will connect to.")
    ],
    name: _NAME = "coordinator",
    port: Annotated[int, typer.Option("--port", help="The one public port.")] = 443,
    passphrase_file: PASSPHRASE = None,
    token: TOKEN = None,
    module: MODULE = None,
) -> None:
    """Make the coordinator's folder: its key, and a request to join."""
    from lepton_cli.joining import make_coordinator
    from lepton_cli.keys import key_place

    place = key_place(passphrase_file, token, module)
    path = make_coordinator(folder, name, host, port, place)
    _say_next(path, "server", folder)


@person_app.command("init")
def person_init(
    folder: _FOLDER,
    name: _NAME,
    role: Annotated[
        list[str], typer.Option("--role", help="administrator, lead or auditor; may be repeated.")
    ],
    passphrase_file: PASSPHRASE = None,
    token: TOKEN = None,
    module: MODULE = None,
) -> None:
    """Make a person's folder: their key, and a request to join."""
    from lepton_cli.joining import make_person
    from lepton_cli.keys import key_place

    place = key_place(passphrase_file, token, module)
    path = make_person(folder, name, list(role), place)
    _say_next(path, "person", folder)


@site_app.command("join")
@server_app.command("join")
@person_app.command("join")
def join_command(
    folder: Annotated[Path, typer.Argument(help="The folder made by `init`.")],
    roster: Annotated[Path, typer.Argument(help="roster.json, or the federation's folder.")],
    root: Annotated[
        str, typer.Option("--root", help="The root's digest, which came by another way.")
    ],
) -> None:
    """Pin a federation's root and take over its roster; also for each newer version of it."""
    from lepton_cli.joining import join
    from lepton_common.errors import RosterInvalid

    path = roster / "roster.json" if roster.is_dir() else roster
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        raise RosterInvalid(f"Cannot read the roster {path}.") from None
    studies = roster / "studies" if roster.is_dir() else None
    found = join(folder, text, root, datetime.now(UTC).date(), studies)
    print(
        f"Joined {found.federation}, version {found.version} of its roster: "
        f"{len(found.members)} sites, good until {found.until or 'always'}."
    )


def _say_next(path: Path, kind: str, folder: Path) -> None:
    print(f"Send {path} to a partner of the federation; the keys in {folder} stay here.")
    print(f"Once the partners have signed: lepton {kind} join {folder} ROSTER --root DIGEST")
