"""Writes systemd units for a site's agent and for a coordinator, and a site's logrotate snippet."""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from lepton_cli.joining import JOIN_FILE
from lepton_client.site import SITE_FILE, read_site_file
from lepton_client.traces import ERROR_FILE
from lepton_common.errors import JoinInvalid, SettingsError
from lepton_common.identity.joining import read_join
from lepton_common.identity.roster import Coordinator

# Read alike, without quotes, by all that systemd and logrotate do with them.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9/._+@-]*")
_ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
# Settings, data, privacy, audit and identity: only a person can mend these.
_LASTING = "2 3 4 6 8"


def site_unit(folder: Path, user: str | None, passphrase_file: Path | None, *, gpu: bool) -> str:
    """Returns the unit of a site's agent.

    Args:
        folder: of the site.
        user: account to run as; None for the folder's owner.
        passphrase_file: file that opens its key; None for a key that is not sealed.
        gpu: whether NVIDIA's devices are let through.

    Raises:
        SettingsError: there is no good site file, or systemd would misread a name.
    """
    data = read_site_file(folder / SITE_FILE).data
    root = _plain(Path(data.root)) if data.root else None
    values = {"gpu": gpu, "root": root, **_start("site", passphrase_file)}
    return _render("site.service.j2", folder, user, values)


def server_unit(folder: Path, user: str | None, passphrase_file: Path | None) -> str:
    """Returns the unit of a coordinator.

    Args:
        folder: of the coordinator.
        user: account to run as; None for the folder's owner.
        passphrase_file: file that opens its key; None for a key that is not sealed.

    Raises:
        JoinInvalid: the folder is not a coordinator's.
        SettingsError: systemd would misread a name.
    """
    port = _coordinator(folder).port
    values = {"low_port": port < 1024, **_start("server", passphrase_file)}
    return _render("server.service.j2", folder, user, values)


def site_logrotate(folder: Path, user: str | None) -> str:
    """Returns the logrotate snippet of a site; a coordinator needs none.

    Raises:
        SettingsError: there is no good site file, or logrotate would misread a name.
    """
    read_site_file(folder / SITE_FILE)
    return _render("logrotate.j2", folder, user, {"log": ERROR_FILE})


def _start(kind: str, passphrase_file: Path | None) -> dict[str, str | None]:
    return {"kind": kind, "passphrase_file": _plain(passphrase_file) if passphrase_file else None}


def _coordinator(folder: Path) -> Coordinator:
    try:
        entry = read_join((folder / JOIN_FILE).read_text(encoding="utf-8"))
    except OSError:
        entry = None
    if not isinstance(entry, Coordinator):
        raise JoinInvalid(f"{folder} is not a coordinator's; make one by `lepton server init`.")
    return entry


def _render(template: str, folder: Path, user: str | None, values: Mapping[str, object]) -> str:
    account = user or folder.owner()
    if not _ACCOUNT.fullmatch(account):
        raise SettingsError(f"{account!r} is not an account that systemd takes; give --user.")
    # Not HTML: what goes in holds no character that means anything there.
    templates = Environment(
        loader=PackageLoader("lepton_cli"),
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(template).render(
        folder=_plain(folder),
        name=folder.resolve().name,
        user=account,
        program=_plain(Path(sys.executable).with_name("lepton")),
        lasting=_LASTING,
        **values,
    )


def _plain(path: Path) -> str:
    """Returns a path that needs no quotes.

    Raises:
        SettingsError: it has characters that systemd would read otherwise.
    """
    text = str(path.absolute() if path.name == "lepton" else path.resolve())
    if not _PLAIN_PATH.fullmatch(text):
        raise SettingsError(
            f"The path {text!r} has characters that systemd reads otherwise; choose one of "
            "letters, digits and /._+@-."
        )
    return text
