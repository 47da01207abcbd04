"""Makes the folder of a new identity: its keys, which never leave it, and a request to join."""

from collections.abc import Mapping
from datetime import date
from importlib import resources
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jinja2 import Environment, PackageLoader

from lepton_client.agent import NODE_KEY_FILE
from lepton_client.site import (
    KEY_FILE,
    ROOT_FILE,
    ROSTER_FILE,
    SITE_FILE,
    STUDIES,
    SiteData,
    parse_site_file,
)
from lepton_common.datasets.catalog import load_dataset
from lepton_common.durable import write_atomic
from lepton_common.errors import IdentityError, JoinInvalid, RosterInvalid, SettingsError
from lepton_common.identity.certificates import make_authority
from lepton_common.identity.joining import Entry, make_join, read_join
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import (
    Coordinator,
    Member,
    Person,
    Roster,
    check_newer,
    read_roster,
)
from lepton_common.identity.study import read_studies, take_study
from lepton_common.privacy.plan import public_size_class
from lepton_common.strict import Digest, parse

JOIN_FILE = "join.json"
_PREPARE = "public_ranges"


def make_site(
    folder: Path,
    name: str,
    *,
    data_id: str,
    dataset: str,
    root: str | None,
    public_size: int | None,
    passphrase: str | None,
) -> Path:
    """Makes a site's folder, with a strict policy, and returns its request to join.

    Args:
        folder: a new or empty one.
        name: of the site.
        data_id: the operator's name for the data.
        dataset: a name in the catalog.
        root: folder that holds it; None for the user's cache.
        public_size: number of privacy units to make public, as a size class; None: the true one.
        passphrase: seals the signing key; None to leave it open to the folder's owner.

    Raises:
        DataError: the data cannot be read.
        SettingsError: a name has characters that names do not have.
        JoinInvalid: the folder is not empty.
    """
    found = load_dataset(dataset, root, _PREPARE)
    size = public_size_class(public_size or found.train.unit_count)
    data = SiteData(
        id=data_id, dataset=dataset, root=root, prepare=_PREPARE, unit=found.unit, rows=None
    )
    text = _site_file(name, size, data)
    parse_site_file(text, folder / SITE_FILE)
    node = ec.generate_private_key(ec.SECP256R1())
    public = node.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path = _make(Member, folder, name, {"node_key": public.decode()}, passphrase)
    secret = node.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_atomic(folder / NODE_KEY_FILE, secret, mode=0o600)
    write_atomic(folder / SITE_FILE, text.encode())
    return path


def make_coordinator(
    folder: Path, name: str, hosts: list[str], port: int, passphrase: str | None
) -> Path:
    """Makes a coordinator's folder, and returns its request to join.

    Raises:
        JoinInvalid: the folder is not empty.
        SettingsError: a host, the port or the name is not valid.
    """
    return _make(Coordinator, folder, name, {"hosts": hosts, "port": port}, passphrase)


def make_person(folder: Path, name: str, roles: list[str], passphrase: str | None) -> Path:
    """Makes the folder of someone who calls the control service, and returns the request to join.

    Raises:
        JoinInvalid: the folder is not empty.
        SettingsError: a role or the name is not valid.
    """
    return _make(Person, folder, name, {"roles": roles}, passphrase)


def join(
    folder: Path, roster_text: str, root: Digest, today: date, studies: Path | None = None
) -> Roster:
    """Puts a roster that names this folder's key into it, and pins its root.

    Args:
        folder: made by `make_site`, `make_coordinator` or `make_person`.
        roster_text: of a roster file.
        root: digest of its first version.
        today: the date.
        studies: folder of published ones; a coordinator takes those along that are good today,
            and hands each site its own.

    Raises:
        RosterInvalid: it does not verify, has another root than before, or does not name this key.
        RosterRolledBack: a newer one is here already.
        RosterExpired: it is past its last day.
        StudyInvalid: a study is older than the one that is here.
    """
    path, pin = folder / ROSTER_FILE, folder / ROOT_FILE
    if pin.exists() and pin.read_text(encoding="utf-8").strip() != root:
        raise RosterInvalid("This folder belongs to another federation; make a new one.")
    roster = read_roster(roster_text, root)
    roster.check_date(today)
    if path.exists():
        check_newer(path.read_text(encoding="utf-8"), roster_text)
    try:
        asked = read_join((folder / JOIN_FILE).read_text(encoding="utf-8"))
    except OSError:
        raise JoinInvalid(f"{folder} holds no {JOIN_FILE}; make it by `init`.") from None
    everyone: list[Entry] = [*roster.members, *roster.people]
    everyone += [roster.coordinator] if roster.coordinator else []
    if asked not in everyone:
        raise RosterInvalid(
            f"Version {roster.version} of the roster does not name {asked.name} with the key that "
            "is here; ask a partner to propose and sign it."
        )
    write_atomic(pin, root.encode())
    write_atomic(path, roster_text.encode())
    if isinstance(asked, Coordinator) and studies is not None:
        for _, text in read_studies(studies, roster, today):
            take_study(folder / STUDIES, text, roster, today)
    return roster


def _make(
    cls: type[Entry],
    folder: Path,
    name: str,
    fields: Mapping[str, object],
    passphrase: str | None,
) -> Path:
    key = SigningKey.generate()
    common = {"name": name, "public_key": key.public_hex, "authority": make_authority(key, name)}
    entry, faults = parse(cls, {**common, **fields})
    if entry is None:
        raise SettingsError(faults)
    _new_folder(folder)
    key.save(folder / KEY_FILE, passphrase)
    return _request(folder, key, entry)


def _site_file(name: str, public_size: int, data: SiteData) -> str:
    strict = resources.files("lepton_conf").joinpath("policy/strict.yaml").read_text("utf-8")
    # Not HTML: what the operator gave is quoted as YAML by the template.
    templates = Environment(loader=PackageLoader("lepton_cli"), autoescape=False)  # noqa: S701
    return templates.get_template("site.yaml.j2").render(
        name=name, public_size=public_size, data=data, policy=strict.rstrip()
    )


def _new_folder(folder: Path) -> None:
    if folder.exists() and any(folder.iterdir()):
        raise JoinInvalid(f"{folder} is not empty; choose a new folder.")
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def _request(folder: Path, key: SigningKey, entry: Entry) -> Path:
    path = folder / JOIN_FILE
    write_atomic(path, make_join(key, entry).encode())
    return path


def read_passphrase(path: Path | None) -> str | None:
    """Returns the passphrase in the first line of a file; None without a file.

    Raises:
        IdentityError: it cannot be read, or is empty.
    """
    if path is None:
        return None
    try:
        (line, *_) = path.read_text(encoding="utf-8").splitlines() or [""]
    except OSError as error:
        raise IdentityError(f"Cannot read the passphrase file {path}: {error.strerror}.") from None
    if not line:
        raise IdentityError(f"The first line of {path} is empty; write the passphrase there.")
    return line
