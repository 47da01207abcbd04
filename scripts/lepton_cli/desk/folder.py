"""A site's folder as its operator reads it, also while the agent works: nothing is written."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from lepton_cli.joining import JOIN_FILE
from lepton_client.ledger import Ledger
from lepton_client.proposals import Proposals
from lepton_client.site import (
    AUDIT_FILE,
    KEY_FILE,
    LEDGER_FILE,
    ROOT_FILE,
    ROSTER_FILE,
    SITE_FILE,
    SiteFile,
    read_site_file,
)
from lepton_client.trainer import LocalTrainer, Trainer
from lepton_client.trainer_process import TrainerProcess
from lepton_common.audit import read_records
from lepton_common.chain import ChainRecord
from lepton_common.errors import JoinInvalid, SettingsError
from lepton_common.identity.joining import read_join
from lepton_common.identity.keys import PublicKey, read_public
from lepton_common.identity.roster import Roster, read_roster_files
from lepton_common.privacy.ledger_file import LedgerContents, read_ledger


class Desk:
    """What a site's folder holds; read once, when it is first asked for.

    Attributes:
        folder: the site's.
        file: its ``site.yaml``.
    """

    def __init__(self, folder: Path) -> None:
        """Reads ``site.yaml``.

        Raises:
            SettingsError: it is missing or has faults.
        """
        self.folder = folder.resolve()
        self.file: SiteFile = read_site_file(self.folder / SITE_FILE)

    @cached_property
    def key(self) -> PublicKey:
        """The public half of the site's key, as its request to join names it.

        Raises:
            JoinInvalid, KeyUnreadable: there is no such request, and no key that is not sealed.
        """
        return PublicKey(public_key_of(self.folder))

    @cached_property
    def roster(self) -> Roster:
        """The federation's roster.

        Raises:
            RosterInvalid: there is none, or it does not verify.
        """
        return read_roster_files(self.folder / ROSTER_FILE, self.folder / ROOT_FILE)

    @cached_property
    def records(self) -> list[ChainRecord]:
        """The audit log, verified; empty before the site is first started.

        Raises:
            AuditError: it does not verify.
        """
        path = self.folder / AUDIT_FILE
        return list(read_records(path, self.key.public_hex)) if path.exists() else []

    @cached_property
    def ledger(self) -> Ledger:
        """The privacy ledger, verified, and with all the charges that the audit log tells of.

        Raises:
            AuditError, LedgerInvalid, LedgerRolledBack: log or ledger is not whole.
        """
        said = self.records  # first: an agent at work writes the charge before the log
        ledger = Ledger(self.folder / LEDGER_FILE, self.key, self.file.data.id)
        ledger.check_charged(said)
        return ledger

    @cached_property
    def charged(self) -> LedgerContents:
        """The ledger's entries, as `ledger` has verified them."""
        _ = self.ledger
        path = self.folder / LEDGER_FILE
        return read_ledger(path, self.key.public_hex) if path.exists() else LedgerContents()

    @cached_property
    def proposals(self) -> Proposals:
        """The runs that were proposed.

        Raises:
            SettingsError: ``site.yaml`` has no rules for them, as in a simulation.
        """
        if self.file.launch is None:
            raise SettingsError("site.yaml has no section 'launch': nothing is proposed here.")
        return Proposals(self.folder, None)


@contextmanager
def trainer_of(desk: Desk, secret: bytes = bytes(32)) -> Iterator[Trainer]:
    """Gives a trainer for the site's data, confined as the agent's, and ends it afterwards.

    Args:
        desk: the site's.
        secret: key of the hashes of its people; none is needed where nothing is charged.

    Raises:
        IsolationUnavailable: this system cannot confine it so.
    """
    file = desk.file
    if file.trainer is None:
        yield LocalTrainer(file.name, file.data, desk.folder, secret)
        return
    process = TrainerProcess(file.name, file.data, desk.folder, secret, file.trainer)
    try:
        yield process
    finally:
        process.stop()


def public_key_of(folder: Path) -> str:
    """Returns a site's public key, without opening the private one.

    Raises:
        JoinInvalid, KeyUnreadable: see `Desk.key`.
    """
    path = folder / JOIN_FILE
    if not path.exists():
        return read_public(folder / KEY_FILE)
    try:
        return read_join(path.read_text(encoding="utf-8")).public_key
    except UnicodeDecodeError:
        raise JoinInvalid(f"{path} is no request to join.") from None
