"""``lepton site bundle|unbundle`` and ``site|server unit``: installing and keeping it running."""

import hashlib
import tempfile
from pathlib import Path
from typing import Annotated

import typer

BUNDLE_HELP = """Make one file from which Lepton installs where there is no network.

  lepton federation key maker.pem                            [dim]once; the key that signs[/]
  lepton site bundle lepton.tar --offline --key maker.pem

It holds a wheel of every package that runs here, in the same version, for this Python and this
system; requirements with their digests, a bill of materials (CycloneDX), INSTALL.md, and a signed
manifest of it all. Packages that are published as source only are built here.
"""
UNBUNDLE_HELP = """Check a bundle, and unpack it if asked to.

  lepton site unbundle lepton.tar --signer KEY --extract lepton-bundle

First the signature, then each name, size and byte; only then the folder appears. Where Lepton is
not installed yet, `tar -xOf lepton.tar INSTALL.md` says how OpenSSL checks the same.
"""
UNIT_HELP = """Print a systemd unit that keeps it running.

  lepton {kind} unit my-{kind} --user lepton | sudo tee /etc/systemd/system/lepton-{kind}.service
  sudo systemctl daemon-reload && sudo systemctl enable --now lepton-{kind}

It may write to its own folder and nothing else. It is started again after a crash, but not after
a fault that only a person can mend.
"""

_SERVICE = Annotated[Path, typer.Argument(help="The folder made by `init`.")]
_USER = Annotated[
    str | None, typer.Option("--user", help="The account to run as; by default the folder's owner.")
]
_PASSPHRASE_FILE = Annotated[
    Path | None,
    typer.Option("--passphrase-file", help="systemd hands its first line over, read by root."),
]


def bundle(
    out: Annotated[Path, typer.Argument(help="The file to make, a .tar.")],
    key: Annotated[Path, typer.Option("--key", help="Signs it; from `lepton federation key`.")],
    offline: Annotated[
        bool, typer.Option("--offline", help="With every wheel in it; the only kind there is.")
    ] = True,
    wheels: Annotated[
        Path | None,
        typer.Option("--wheels", help="Take all wheels from this folder; download nothing."),
    ] = None,
    passphrase_file: Annotated[
        Path | None,
        typer.Option("--passphrase-file", help="Its first line opens a sealed key."),
    ] = None,
) -> None:
    """Makes a bundle; `BUNDLE_HELP` is what the user reads."""
    from lepton_cli.bundle import write_bundle
    from lepton_cli.keys import read_passphrase
    from lepton_cli.wheels import collect, needed
    from lepton_common.errors import FileUnusable
    from lepton_common.identity.keys import SigningKey

    del offline  # there is no other kind
    secret = SigningKey.load(key, read_passphrase(passphrase_file))
    if not out.parent.is_dir():
        raise FileUnusable(f"There is no folder {out.parent} for {out.name}; make it first.")
    packages = needed()
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        print(f"1/2  Collecting {len(packages)} wheels ...", flush=True)
        found = collect(packages, Path(folder), wheels)
        print(f"2/2  Signing {sum(p.stat().st_size for p in found) / 1e6:.0f} MB ...", flush=True)
        manifest = write_bundle(found, out, secret)
    with out.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    print(
        f"{out}: Lepton {manifest.version} for Python {manifest.python} on {manifest.platform}, "
        f"{len(manifest.files)} files.\n"
        f"SHA-256: {digest}\n"
        f"Signed by: {secret.public_hex}\n"
        "Tell the partner the signer's key by another way than you send the file."
    )


def unbundle(
    file: Annotated[Path, typer.Argument(help="The bundle.")],
    signer: Annotated[
        str, typer.Option("--signer", help="Its maker's public key, which came by another way.")
    ],
    extract: Annotated[
        Path | None, typer.Option("--extract", help="A new folder for its files.")
    ] = None,
) -> None:
    """Checks a bundle; `UNBUNDLE_HELP` is what the user reads."""
    from lepton_cli.bundle import read_bundle

    manifest = read_bundle(file, signer, extract)
    print(
        f"Good: Lepton {manifest.version} for Python {manifest.python} on {manifest.platform}, "
        f"{len(manifest.files)} files as its maker signed them."
    )
    if extract is not None:
        print(f"Next: see {extract / 'INSTALL.md'}, from step 2.")


def site_unit(
    folder: _SERVICE,
    user: _USER = None,
    passphrase_file: _PASSPHRASE_FILE = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Let it use NVIDIA's devices.")] = False,
    logrotate: Annotated[
        bool, typer.Option("--logrotate", help="Print the logrotate snippet for errors.log.")
    ] = False,
) -> None:
    """Prints a site's unit; `UNIT_HELP` is what the user reads."""
    from lepton_cli.units import site_logrotate, site_unit

    text = (
        site_logrotate(folder, user)
        if logrotate
        else site_unit(folder, user, passphrase_file, gpu=gpu)
    )
    print(text, end="")


def server_unit(
    folder: _SERVICE,
    user: _USER = None,
    passphrase_file: _PASSPHRASE_FILE = None,
) -> None:
    """Prints a coordinator's unit; `UNIT_HELP` is what the user reads."""
    from lepton_cli.units import server_unit

    print(server_unit(folder, user, passphrase_file), end="")
