"""A site as its folder: site file, signing key, audit log and ledger, and its data."""

import contextlib
import re
import threading
import time
import traceback
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import yaml

from lepton_client.door import Door
from lepton_client.ledger import Ledger
from lepton_client.people import unit_hashes
from lepton_client.residual import Residuals
from lepton_client.spent import SpentRounds
from lepton_client.vault import Vault
from lepton_common.audit import AuditLog
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Dataset, Records, Rows
from lepton_common.errors import DataInvalid, DataMissing, RosterInvalid, SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Roster, read_roster_files, take_roster
from lepton_common.identity.study import Study, read_studies, take_study
from lepton_common.policy import SitePolicy
from lepton_common.strict import Name, Size, parse, record

SITE_FILE, KEY_FILE, AUDIT_FILE = "site.yaml", "signing.pem", "audit.jsonl"
ROSTER_FILE, ROOT_FILE, LEDGER_FILE = "roster.json", "roster.root", "ledger.db"
ERROR_FILE, STUDIES = "errors.log", "studies"


# The C version of the safe loader, where PyYAML was built with it: ten times faster.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes 1e-5 for a number, as everybody but YAML 1.1 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+e[-+]?[0-9]+$", re.IGNORECASE),
    [*"-+0123456789"],
)


@record
class SiteData:
    """Which records are the site's.

    Attributes:
        id: the operator's own name for the data, under which the ledger keeps it.
        dataset: a name in the catalog of data sets.
        root: folder that holds it; None for the user's cache.
        prepare: how it is prepared.
        unit: what the data protects as one.
        rows: file in the site's folder that lists the site's rows (``.npy``, int64); None: all.
    """

    id: Name
    dataset: Name
    root: str | None
    prepare: str
    unit: Name
    rows: str | None


@record
class SiteFile:
    """What the site operator decides, as written in ``site.yaml``.

    Attributes:
        name: the site's name.
        public_size: size class of its data in privacy units; public by the operator's decision.
        data: see `SiteData`.
        policy: see `lepton_common.policy.SitePolicy`.
    """

    name: Name
    public_size: Size
    data: SiteData
    policy: SitePolicy


class Site:
    """A site opened for work; one request at a time, under `lock`."""

    def __init__(self, folder: Path) -> None:
        """Opens a site's folder.

        Raises:
            SettingsError: the site file is missing or has faults.
            AuditError: the audit log does not verify.
            LedgerInvalid, LedgerRolledBack: nor does the ledger, or it lacks charges.
        """
        self.folder = folder
        self.file = read_site_file(folder / SITE_FILE)
        self.key = SigningKey.load(folder / KEY_FILE)
        self.audit = AuditLog(folder / AUDIT_FILE, self.key, self.file.name)
        self.ledger = Ledger(folder / LEDGER_FILE, self.key, self.file.data.id)
        releases = (record.body for record in self.audit.records if record.kind == "release")
        self.ledger.check_charged(body["charge"] for body in releases if body["charge"])
        self.door = Door(self.audit, self.ledger, self.file.policy)
        self.spent = SpentRounds(self.audit)
        self.vault = Vault(folder / "rounds", self.key)
        self.residuals = Residuals(folder / "residuals")
        self.lock = threading.Lock()
        self._held: tuple[Records, Rows, Records] | None = None

    def keep_trace(self, error: BaseException) -> None:
        """Writes an error's full text to the site's own ``errors.log``, which never leaves it."""
        with contextlib.suppress(OSError), (self.folder / ERROR_FILE).open("a") as file:
            file.write(time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
            traceback.print_exception(error, file=file)

    @cached_property
    def roster(self) -> Roster:
        """The sites of the federation, as its partners signed it.

        Raises:
            RosterInvalid: there is no such file, it has another root than the one that this site
                joined, or too few of them signed it.
        """
        return read_roster_files(self.folder / ROSTER_FILE, self.folder / ROOT_FILE)

    def coordinator(self) -> Coordinator:
        """Returns the coordinator that the roster names for this site.

        Raises:
            RosterInvalid, RosterExpired: the roster is not good, or does not name this site.
        """
        roster = self.roster
        roster.check_date(datetime.now(UTC).date())
        named = {member.name: member.public_key for member in roster.members}
        if named.get(self.file.name) != self.key.public_hex:
            raise RosterInvalid(
                f"Version {roster.version} of the roster does not name {self.file.name} with this "
                "site's key; ask a partner, if it should."
            )
        if roster.coordinator is None:
            raise RosterInvalid("The roster names no coordinator; ask a partner to propose one.")
        return roster.coordinator

    def studies(self) -> list[Study]:
        """Returns the studies that are known here and good today."""
        today = datetime.now(UTC).date()
        return [study for study, _ in read_studies(self.folder / STUDIES, self.roster, today)]

    def take_study(self, text: str) -> Study:
        """Takes over a study, or a newer version of one.

        Raises:
            StudyInvalid: it is not good, or older than what is here; the site keeps its own.
        """
        today = datetime.now(UTC).date()
        return take_study(self.folder / STUDIES, text, self.roster, today)

    def take_roster(self, text: str) -> Roster:
        """Takes over a newer roster of the same partners.

        Raises:
            RosterInvalid, RosterRolledBack: it is none; the site keeps its own.
        """
        roster = take_roster(self.folder / ROSTER_FILE, self.folder / ROOT_FILE, text)
        self.__dict__["roster"] = roster  # the cached one
        return roster

    def dataset(self) -> Dataset:
        """Returns the data set that the site's records belong to, checked."""
        data = self.file.data
        return load_dataset(data.dataset, data.root, data.prepare)

    def records(self) -> Records:
        """Returns the site's own records.

        Raises:
            DataMissing: the list of rows is not there or does not fit.
        """
        train = self.dataset().train
        if self.file.data.rows is None:
            return train
        path = self.folder / self.file.data.rows
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataMissing(f"Cannot read the list of rows {path}; create it again.") from error
        fits = rows.dtype == np.int64 and rows.ndim == 1 and len(np.unique(rows)) == len(rows)
        if not fits or (len(rows) and not 0 <= rows.min() <= rows.max() < len(train)):
            raise DataMissing(f"The list of rows {path} does not fit its data set.")
        if self._held is not None:
            of, which, held = self._held
            if of is train and np.array_equal(which, rows):
                return held
        self._held = train, rows, train.take(rows)
        return self._held[2]

    def note_engine(self, run: str, engine: str, difference: float | None) -> None:
        """Puts on record, once a run, what computes its private gradients, and how it conforms."""
        known = (r for r in self.audit.records if r.kind == "engine")
        if all((r.body["run"], r.body["engine"]) != (run, engine) for r in known):
            body = {"run": run, "engine": engine, "difference": difference}
            self.audit.append("engine", body)

    def use_data(self) -> Records:
        """Puts the people in the site's data on record in its ledger, and returns the records.

        Raises:
            DataError: the data cannot be read, or protects another unit than the site file says:
                under another name its people would not be known again.
            LedgerInvalid: the ledger cannot be written.
        """
        records, unit = self.records(), self.dataset().unit
        if unit != self.file.data.unit:
            raise DataInvalid(f"The data's privacy unit is {unit}; say so in {SITE_FILE}.")
        self.ledger.use_data(unit, unit_hashes(records, unit, self.key))
        return records


_OPENING = threading.Lock()


def open_site(folder: str) -> Site:
    """Returns the site in a folder; opened once per process, so that its log has one writer."""
    with _OPENING:
        return _open_once(folder)


@lru_cache(maxsize=4096)
def _open_once(folder: str) -> Site:
    return Site(Path(folder))


def forget_sites() -> None:
    """Closes all opened sites, as the end of the process would."""
    _open_once.cache_clear()


def read_site_file(path: Path) -> SiteFile:
    """Reads ``site.yaml``.

    Raises:
        SettingsError: it is missing, or all its faults at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"Cannot read the site file {path}; create the site again.") from error
    return parse_site_file(text, path)


def parse_site_file(text: str, path: Path) -> SiteFile:
    """Returns the site file that a text holds; ``path`` is named where it has faults.

    Raises:
        SettingsError: all its faults at once.
    """
    try:
        values = yaml.load(text, Loader=_Loader)  # noqa: S506
    except yaml.YAMLError as error:
        raise SettingsError(f"Cannot read the site file {path}; create the site again.") from error
    file, faults = parse(SiteFile, values)
    if file is None:
        raise SettingsError([f"{path}: {fault}" for fault in faults])
    return file
