"""Makes the folder of a new identity: its keys, which never leave it, and a request to join."""

import json
from collections.abc import Mapping
from datetime import date
from importlib import resources
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from jinja2 import Environment, PackageLoader

from lepton_cli.keys import KeyPlace
from lepton_client.agent import NODE_KEY_FILE
from lepton_client.connectors.reading import read_records
from lepton_client.connectors.sources import TableSource
from lepton_client.data import SiteData
from lepton_client.proposals import STUDIES
from lepton_client.running import agent_of
from lepton_client.site import (
    KEY_FILE,
    ROOT_FILE,
    ROSTER_FILE,
    SITE_FILE,
    parse_site_file,
    read_site_file,
)
from lepton_client.succession import carry_over, read_old
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.schemas import find_schema
from lepton_common.durable import write_atomic
from lepton_common.errors import (
    AgentRunning,
    DataMissing,
    JoinInvalid,
    RosterInvalid,
    SettingsError,
)
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
from lepton_common.strict import Digest, parse, to_json

JOIN_FILE = "join.json"
_PREPARE = "public_ranges"


def make_site(
    folder: Path,
    name: str,
    *,
    data_id: str,
    dataset: str,
    root: str | None,
    source: TableSource | None = None,
    public_size: int | None,
    place: KeyPlace,
) -> Path:
    """Makes a site's folder, with a strict policy, and returns its request to join.

    Args:
        folder: a new or empty one.
        name: of the site.
        data_id: the operator's name for the data.
        dataset: a name in the catalog.
        root: folder that holds it; None for the user's cache.
        source: the site's own table, in the place of the catalog's records.
        public_size: number of privacy units to make public, as a size class; None: the true one.
        place: where its signing key is made.

    Raises:
        DataError: the data cannot be read.
        SettingsError: a name has characters that names do not have.
        JoinInvalid: the folder is not empty.
        KeyUnreadable: a token does not make the key.
    """
    if source is None:
        found = load_dataset(dataset, root, _PREPARE)
        unit, units = found.unit, found.train.unit_count
    else:
        schema = find_schema(dataset)
        unit = schema.unit
        units = public_size or read_records(source, schema, folder.resolve()).unit_count
    size = public_size_class(public_size or units)
    data = SiteData(
        id=data_id, dataset=dataset, root=root, prepare=_PREPARE, unit=unit, rows=None,
        source=source,
    )  # fmt: skip
    text = _site_file(name, size, data)
    parse_site_file(text, folder / SITE_FILE)
    path = _make_keys(folder, name, place)
    write_atomic(folder / SITE_FILE, text.encode())
    return path


def rekey_site(old: Path, folder: Path, place: KeyPlace) -> tuple[Path, int]:
    """Makes a new folder for a site whose key is lost or stolen, or shall be in a token.

    Args:
        old: the site's folder; its private key is not needed.
        folder: a new or empty one.
        place: where the new key is made.

    Returns:
        The new key's request to join, and how many charges went over to its ledger.

    Raises:
        JoinInvalid: the old folder has no request to join, or the new one is not empty.
        AgentRunning: an agent works in the old folder.
        SettingsError, DataMissing: its site file or list of rows has faults, or is gone.
        KeyUnreadable: a token does not make the key.
        AuditError, LedgerInvalid, LedgerRolledBack: the site's records are not whole.
    """
    before, file = _request_of(old), read_site_file(old / SITE_FILE)
    if agent_of(old) is not None:
        # What it charged from here on would stay behind.
        raise AgentRunning(f"An agent works in {old}; end it first, then make the new key.")
    read_old(old, before.public_key)
    kept = [SITE_FILE] if file.data.rows is None else [file.data.rows, SITE_FILE]
    try:
        contents = [(name, (old / name).read_bytes()) for name in kept]
    except OSError as error:
        raise DataMissing(f"Cannot read {error.filename}: {error.strerror}.") from None
    path = _make_keys(folder, file.name, place)
    key = SigningKey.load(folder / KEY_FILE, place.passphrase)
    charges = carry_over(old, before.public_key, folder, key, file.name)
    # The site file comes last: without it no site opens, so none does without what it has spent.
    for name, data in contents:
        write_atomic(folder / name, data)
    return path, charges


def _make_keys(folder: Path, name: str, place: KeyPlace) -> Path:
    node = ec.generate_private_key(ec.SECP256R1())
    public = node.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    path = _make(Member, folder, name, {"node_key": public.decode()}, place)
    secret = node.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    write_atomic(folder / NODE_KEY_FILE, secret, mode=0o600)
    return path


def make_coordinator(folder: Path, name: str, hosts: list[str], port: int, place: KeyPlace) -> Path:
    """Makes a coordinator's folder, and returns its request to join.

    Raises:
        JoinInvalid: the folder is not empty.
        SettingsError: a host, the port or the name is not valid.
        KeyUnreadable: a token does not make the key.
    """
    return _make(Coordinator, folder, name, {"hosts": hosts, "port": port}, place)


def make_person(folder: Path, name: str, roles: list[str], place: KeyPlace) -> Path:
    """Makes the folder of someone who calls the control service, and returns the request to join.

    Raises:
        JoinInvalid: the folder is not empty.
        SettingsError: a role or the name is not valid.
        KeyUnreadable: a token does not make the key.
    """
    return _make(Person, folder, name, {"roles": roles}, place)


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
        raise RosterInvalid(
            f"{folder} is pinned to another root than --root says: compare the digest again; for "
            "another federation, make a new folder."
        )
    roster = read_roster(roster_text, root)
    roster.check_date(today)
    if path.exists():
        check_newer(path.read_text(encoding="utf-8"), roster_text)
    asked = _request_of(folder)
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


def _request_of(folder: Path) -> Entry:
    try:
        return read_join((folder / JOIN_FILE).read_text(encoding="utf-8"))
    except OSError:
        raise JoinInvalid(f"{folder} holds no {JOIN_FILE}; make it by `init`.") from None


def _make(
    cls: type[Entry], folder: Path, name: str, fields: Mapping[str, object], place: KeyPlace
) -> Path:
    # Tried with a key that is thrown away, so that no token keeps one that nobody asked for.
    _entry(cls, SigningKey.generate(), name, fields)
    _new_folder(folder)
    key = place.make(name)
    key.save(folder / KEY_FILE, place.passphrase)
    return _request(folder, key, _entry(cls, key, name, fields))


def _entry(cls: type[Entry], key: SigningKey, name: str, fields: Mapping[str, object]) -> Entry:
    common = {"name": name, "public_key": key.public_hex, "authority": make_authority(key, name)}
    entry, faults = parse(cls, {**common, **fields})
    if entry is None:
        raise SettingsError(faults)
    return entry


def _site_file(name: str, public_size: int, data: SiteData) -> str:
    strict = resources.files("lepton_conf").joinpath("policy/strict.yaml").read_text("utf-8")
    # Not HTML: what the operator gave is quoted as YAML by the template.
    templates = Environment(loader=PackageLoader("lepton_cli"), autoescape=False)  # noqa: S701
    return templates.get_template("site.yaml.j2").render(
        name=name,
        public_size=public_size,
        data=data,
        source=json.loads(to_json(data.source)) if data.source is not None else None,
        policy=strict.rstrip(),
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
