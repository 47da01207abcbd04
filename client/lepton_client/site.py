"""A site as its folder: site file, signing key, audit log and ledger, and its data."""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from weakref import WeakValueDictionary

import yaml

from lepton_client.approved_models import approvals_file, note_changes, read_approved
from lepton_client.connectors.report import keep_report
from lepton_client.data import SiteData
from lepton_client.door import Door
from lepton_client.ledger import Ledger
from lepton_client.people import people_secret
from lepton_client.proposals import STUDIES, Proposals
from lepton_client.residual import Residuals
from lepton_client.rules import LaunchRules, TrainerRules
from lepton_client.spent import SpentRounds
from lepton_client.traces import keep_trace
from lepton_client.trainer import LocalTrainer, Trainer
from lepton_client.trainer_process import TrainerProcess
from lepton_client.training.conformance import Conformance
from lepton_client.vault import Vault
from lepton_common.arrays import digest_of
from lepton_common.audit import AuditLog
from lepton_common.errors import RosterInvalid, SettingsError
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Coordinator, Roster, read_roster_files, take_roster
from lepton_common.identity.study import Study, read_studies, take_study
from lepton_common.models.bases import BASES
from lepton_common.policy import SitePolicy
from lepton_common.strict import Name, Size, parse, record, to_json
from lepton_common.yaml_text import load_yaml, yaml_fault

SITE_FILE, KEY_FILE, AUDIT_FILE = "site.yaml", "signing.pem", "audit.jsonl"
ROSTER_FILE, ROOT_FILE, LEDGER_FILE = "roster.json", "roster.root", "ledger.db"


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

    def __init__(self, folder: Path, passphrase: str | None = None) -> None:
        """Opens a site's folder.

        Args:
            folder: the site's.
            passphrase: of its sealed key, or the PIN of its token.

        Raises:
            KeyUnreadable: the site's key cannot be opened.
            SettingsError: the site file is missing or has faults.
            AuditError: the audit log does not verify.
            LedgerInvalid, LedgerRolledBack: nor does the ledger, or it lacks charges.
        """
        self.folder = folder
        self.key = SigningKey.load(folder / KEY_FILE, passphrase)
        self._stamps = self._stamped()
        self.file = read_site_file(folder / SITE_FILE)
        self.audit = AuditLog(folder / AUDIT_FILE, self.key, self.file.name)
        self._obey(self.file)
        self.proposals = Proposals(folder, self.audit)
        self.spent = SpentRounds(self.audit)
        self.vault = Vault(folder / "rounds", self.key)
        self.residuals = Residuals(folder / "residuals")
        self.lock = threading.Lock()
        self._trains_for: str | None = None

    def refresh(self) -> None:
        """Reads the site file again where the operator has changed it, or the models that are here.

        Raises:
            SettingsError: it has faults, or another name; nothing is answered until it is mended.
            PackageAltered: nobody can tell which models are approved; likewise.
        """
        stamps = self._stamped()
        if stamps == self._stamps:
            return
        file = read_site_file(self.folder / SITE_FILE)
        if file.name != self.file.name:
            raise SettingsError("A site keeps its name; put it back in site.yaml.")
        if isinstance(self.trainer, TrainerProcess):
            self.trainer.stop()
        self._obey(file)
        self.note_models()
        self._stamps = stamps
        self.note_policy()

    def _stamped(self) -> list[tuple[int, int, int] | None]:
        names = (self.folder / SITE_FILE, approvals_file(self.folder), self.folder / BASES)
        return [_stamp(path) for path in names]

    def _obey(self, file: SiteFile) -> None:
        self.file = file
        self.ledger = Ledger(self.folder / LEDGER_FILE, self.key, file.data.id)
        self.ledger.check_charged(self.audit.records)
        self.door = Door(self.audit, self.ledger, file.policy)
        secret = people_secret(self.key)
        self.trainer: Trainer = (
            LocalTrainer(file.name, file.data, self.folder, secret)
            if file.trainer is None
            else TrainerProcess(file.name, file.data, self.folder, secret, file.trainer)
        )

    @contextlib.contextmanager
    def training(self, run: str) -> Iterator[Trainer]:
        """Gives the trainer for the work of one run, which `stop_training` may end meanwhile."""
        self._trains_for = run
        try:
            yield self.trainer
        finally:
            self._trains_for = None

    def stop_training(self, run: str) -> None:
        """Ends what the trainer does if that is for ``run``; from any thread."""
        if self._trains_for == run and isinstance(self.trainer, TrainerProcess):
            self.trainer.stop()

    def keep_trace(self, error: BaseException) -> None:
        """Writes an error's full text to the site's own ``errors.log``, which never leaves it.

        What was wrong with its data is in ``data-report.json`` beside it, by column and rule.
        """
        keep_report(self.folder, error)
        keep_trace(self.folder, error)

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

    def note_models(self) -> None:
        """Puts on record which models of packages the operator has approved or removed.

        Raises:
            PackageAltered: nobody can tell.
        """
        note_changes(self.audit, read_approved(self.folder))

    def note_policy(self) -> None:
        """Puts on record by which policy, in which version of Lepton, the site answers from now."""
        if self.file.launch is None:
            return  # a simulation's sites have that of their run
        body = {
            "policy": digest_of(to_json(self.file.policy).encode()),
            "launch": digest_of(to_json(self.file.launch).encode()),
            "lepton": metadata.version("lepton-fl"),
        }
        known = (record.body for record in reversed(self.audit.records) if record.kind == "policy")
        if next(known, None) != body:
            self.audit.append("policy", body)

    def note_engine(self, run: str, found: Conformance) -> None:
        """Puts on record, once a run, what computes its private gradients, and how it conforms."""
        body = {"run": run, **asdict(found)}
        known = (record.body for record in self.audit.records if record.kind == "engine")
        named = ("run", "engine", "precision", "together", "step")
        if all(any(one.get(name) != body[name] for name in named) for one in known):
            self.audit.append("engine", body)


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None  # reading it says why
    return found.st_mtime_ns, found.st_size, found.st_ino


_OPENING = threading.Lock()
_OPENED: WeakValueDictionary[str, Site] = WeakValueDictionary()
_RECENT: OrderedDict[str, Site] = OrderedDict()
_MOST_RECENT = 4096  # kept open, some 20 KB each; the others are opened again when they are asked


def open_site(folder: str, passphrase: str | None = None) -> Site:
    """Returns the site in a folder, of which a process has one: its log has one writer.

    It is open while anybody works with it, or it is among those asked last.

    Args:
        folder: the site's.
        passphrase: see `Site`; who opens the site first must know it.
    """
    with _OPENING:
        if (site := _OPENED.get(folder)) is None:
            site = _OPENED[folder] = Site(Path(folder), passphrase)
        _RECENT[folder] = site
        _RECENT.move_to_end(folder)
        if len(_RECENT) > _MOST_RECENT:
            _RECENT.popitem(last=False)
        return site


def forget_site(folder: str) -> None:
    """Closes one site, if it was opened: another process has worked in its folder since."""
    with _OPENING:
        _RECENT.pop(folder, None)
        _OPENED.pop(folder, None)


def forget_sites() -> None:
    """Closes all opened sites, as the end of the process would."""
    with _OPENING:
        _RECENT.clear()
        _OPENED.clear()


def read_site_file(path: Path) -> SiteFile:
    """Reads ``site.yaml``.

    Raises:
        SettingsError: it is missing, or all its faults at once.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"Cannot read the site file {path}: give a folder made by 'lepton site init'."
        ) from error
    return parse_site_file(text, path)


def parse_site_file(text: str, path: Path) -> SiteFile:
    """Returns the site file that a text holds; ``path`` is named where it has faults.

    Raises:
        SettingsError: all its faults at once.
    """
    try:
        values = load_yaml(text)
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is no YAML any more: {yaml_fault(error)}.") from error
    file, faults = parse(SiteFile, values)
    if file is not None:
        cut_off = file.trainer is not None and file.trainer.isolation == "namespace"
        faults = file.data.faults(cut_off=cut_off)
    if file is None or faults:
        raise SettingsError([f"{path}: {fault}" for fault in faults])
    return file
