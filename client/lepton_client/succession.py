"""A new key takes a lost one's place: what the old one's people have spent goes over to it.

Hashes of people are keyed by the site's key. Under a new one nobody is known again, and a fresh
ledger would give everyone a fresh budget. So each old charge becomes one to everyone in the
site's data: too much for some, too little for none. The rounds that the site has answered go over
too, so that no update leaves a second time.
"""

from pathlib import Path

from lepton_client.ledger import SUCCESSION, check_all_held
from lepton_client.site import AUDIT_FILE, LEDGER_FILE
from lepton_common.audit import AuditLog, read_records
from lepton_common.chain import ChainRecord
from lepton_common.errors import LedgerInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.privacy.ledger_file import (
    CARRIED,
    LedgerContents,
    LedgerFile,
    read_ledger,
)


def carry_over(old: Path, old_key: str, new: Path, key: SigningKey, name: str) -> int:
    """Writes what a site has on record under an old key into a new folder, under a new key.

    Args:
        old: the old folder, whose audit log and ledger must be whole.
        old_key: the old public key; the private one may be lost.
        new: the new folder, without log or ledger.
        key: the new key.
        name: the site's.

    Returns:
        How many charges went over.

    Raises:
        AuditError, LedgerInvalid: what is in the old folder does not verify.
        LedgerRolledBack: its ledger lacks charges.
        LedgerInvalid: the new folder has a ledger already, or cannot be written.
    """
    if (new / LEDGER_FILE).exists() or (new / AUDIT_FILE).exists():
        raise LedgerInvalid(f"{new} has records of its own already; take a new folder.")
    said, spent = read_old(old, old_key)
    audit = AuditLog(new / AUDIT_FILE, key, name)
    before = {"key": old_key, "charges": len(spent.charges), "ledger_head": spent.head}
    audit.append(SUCCESSION, before)
    for record in said:
        if record.kind in ("release", CARRIED) and record.body.keys() & {"spec", "commits"}:
            audit.append(CARRIED, record.body)
    ledger = LedgerFile(new / LEDGER_FILE, key)
    for record in spent.charges:
        origin = {"charge": record.hash, "charged_at": record.time}
        ledger.append(CARRIED, {**origin, **record.body})
    return len(spent.charges)


def read_old(old: Path, old_key: str) -> tuple[list[ChainRecord], LedgerContents]:
    """Returns the records of a site's audit log, and its ledger.

    Raises:
        AuditError, LedgerInvalid, LedgerRolledBack: see `carry_over`.
    """
    said: list[ChainRecord] = []
    if (old / AUDIT_FILE).exists():
        said = list(read_records(old / AUDIT_FILE, old_key))
    spent = LedgerContents()
    if (old / LEDGER_FILE).exists():
        if not said:
            raise LedgerInvalid(f"{old} has a ledger but no audit log, so it may lack charges.")
        spent = read_ledger(old / LEDGER_FILE, old_key)
    check_all_held(said, spent)
    return said, spent
