"""A site as its folder: site file, signing key, audit log and ledger, and its data."""

import contextlib
import re
import threading
import time
import traceback
from dataclasses import asdict
from functools import cached_property, lru_cache
from pathlib import Path

import yaml

from lepton_client.data import SiteData
from lepton_client.door import Door
from lepton_client.ledger import Ledger
from lepton_client.people import people_secret
from lepton_client.proposals import Proposals
from lepton_client.residual import Residuals
from lepton_client.rules import LaunchRules, TrainerRules
from lepton_client.spent import SpentRounds
from lepton_client.trainer import LocalTrainer, Trainer
from lepton_client.trainer_process import TrainerProcess
from lepton_client.training.conformance import Conformance
from lepton_client.vault import Vault
from lepton_common.audit import AuditLog
from lepton_common.errors import SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Roster, read_roster_files
from lepton_common.policy import SitePolicy
from lepton_common.strict import Name, Size, parse, record

SITE_FILE, KEY_FILE, AUDIT_FILE = "site.yaml", "signing.pem", "audit.jsonl"
ROSTER_FILE, ROOT_FILE, LEDGER_FILE = "roster.json", "roster.root", "ledger.db"
ERROR_FILE = "errors.log"


# The C version of the safe loader, where PyYAML was built with it: ten times faster.
class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes 1e-5 for a number, as everybody but YAML 1.1 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?[0-9]+e[-+]?[0-9]+$", re.IGNORECASE),
    [*"-+0123456789"],
)


@record
class SiteFile:
    """What the site operator decides, as written in ``site.yaml``.

    Attributes:
        name: the site's name.
        public_size: size class of its data in privacy units; public by the operator's decision.
        data: see `lepton_client.data.SiteData`.
        policy: see `lepton_common.policy.SitePolicy`.
        trainer: how the process that trains is confined; None in a simulation, where there is
            none.
        launch: whose runs it takes part in; None in a simulation: all.
    """

    name: Name
    public_size: Size
    data: SiteData
    policy: SitePolicy
    trainer: TrainerRules | None = None
    launch: LaunchRules | None = None


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
        self.key = SigningKey.load(folder / KEY_FILE)
        self._stamp = _stamp(folder / SITE_FILE)
        self.file = read_site_file(folder / SITE_FILE)
        self.audit = AuditLog(folder / AUDIT_FILE, self.key, self.file.name)
        self._obey(self.file)
        self.proposals = Proposals(folder, self.audit)
        self.spent = SpentRounds(self.audit)
        self.vault = Vault(folder / "rounds", self.key)
        self.residuals = Residuals(folder / "residuals")
        self.lock = threading.Lock()

    def refresh(self) -> None:
        """Reads the site file again where the operator has changed it.

        Raises:
            SettingsError: it has faults, or another name; nothing is answered until it is mended.
        """
        stamp = _stamp(self.folder / SITE_FILE)
        if stamp == self._stamp:
            return
        file = read_site_file(self.folder / SITE_FILE)
        if file.name != self.file.name:
            raise SettingsError("A site keeps its name; put it back in site.yaml.")
        if isinstance(self.trainer, TrainerProcess):
            self.trainer.stop()
        self._obey(file)
        self._stamp = stamp

    def _obey(self, file: SiteFile) -> None:
        self.file = file
        self.ledger = Ledger(self.folder / LEDGER_FILE, self.key, file.data.id)
        releases = (record.body for record in self.audit.records if record.kind == "release")
        self.ledger.check_charged(body["charge"] for body in releases if body["charge"])
        self.door = Door(self.audit, self.ledger, file.policy)
        secret = people_secret(self.key)
        self.trainer: Trainer = (
            LocalTrainer(file.name, file.data, self.folder, secret)
            if file.trainer is None
            else TrainerProcess(file.name, file.data, self.folder, secret, file.trainer)
        )

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

    def note_engine(self, run: str, found: Conformance) -> None:
        """Puts on record, once a run, what computes its private gradients, and how it conforms."""
        body = {"run": run, **asdict(found)}
        known = (record.body for record in self.audit.records if record.kind == "engine")
        named = ("run", "engine", "precision")
        if all(any(one.get(name) != body[name] for name in named) for one in known):
            self.audit.append("engine", body)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # reading it says why
    return found.st_mtime_ns, found.st_size, found.st_ino


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
