"""The privacy ledger's file: a chain of signed records in SQLite, verifiable offline.

Beside the chain stand keyed hashes of the people (privacy units) in each version of the data, so
that data under another name, or extended, inherits what its people have spent. Entries are only
ever appended; each is on disk (WAL, synchronous=FULL) when `append` returns.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_common.chain import ChainRecord, head_of, next_record, read_chain
from lepton_common.durable import needs_room
from lepton_common.errors import AuditError, LedgerInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.privacy.plan import WHOLE_SITE

CARRIED = "carried"
LEDGER_DOMAIN = b"lepton/ledger/v1"
# In one transaction, so that a crash leaves all of it or nothing.
_SCHEMA = """
BEGIN;
CREATE TABLE IF NOT EXISTS entries (sequence INTEGER PRIMARY KEY, line BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS units (unit BLOB, version TEXT, PRIMARY KEY (unit, version))
WITHOUT ROWID;
CREATE TRIGGER IF NOT EXISTS kept BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are only appended'); END;
CREATE TRIGGER IF NOT EXISTS unchanged BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'entries are only appended'); END;
COMMIT;
"""


@dataclass
class LedgerContents:
    """What a ledger's file holds.

    Attributes:
        records: the chain; kinds ``open``, ``data``, ``charge``, ``release``, ``fresh``, ``void``,
            and ``carried`` for a charge from the ledger of a key that this one's took the place of.
        overlaps: by version of the data, all versions that share a unit with it, itself too.
    """

    records: list[ChainRecord] = field(default_factory=list)
    overlaps: dict[str, set[str]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        """The hash of the newest entry."""
        return head_of(self.records)

    @property
    def charges(self) -> list[ChainRecord]:
        """All charges, also those carried over."""
        return [record for record in self.records if record.kind in ("charge", CARRIED)]

    def charges_to(self, version: str) -> list[ChainRecord]:
        """Returns the charges to the people in a version of the data, or that may be to them.

        A charge to the whole site is to all of them. So is one that was carried over: its people
        are hashed under a key that is gone, and nobody can tell any more who they were.
        """
        related = self.overlaps.get(version, {version})
        return [
            record
            for record in self.charges
            if record.kind == CARRIED
            or record.body["version"] in related
            or record.body["unit"] == WHOLE_SITE
        ]


class LedgerFile:
    """The writer of one ledger."""

    def __init__(self, path: Path, key: SigningKey) -> None:
        """Opens the ledger, verifying what is there.

        Raises:
            LedgerInvalid: it does not verify, or another key wrote it.
        """
        self._path, self._key = path, key
        self.contents = LedgerContents()
        if path.exists():
            self.contents = read_ledger(path, key.public_hex)

    def refresh(self) -> bool:
        """Reads what another process has appended, and says whether there was anything.

        Raises:
            LedgerInvalid: the file does not verify, or lacks an entry that was there.
        """
        if not self._path.exists() or _count(self._path) == len(self.contents.records):
            return False
        found = read_ledger(self._path, self._key.public_hex)
        known = len(self.contents.records)
        if found.records[:known] != self.contents.records:
            raise LedgerInvalid(f"{self._path} lacks entries that it had: an older copy is there.")
        self.contents = found
        return True

    def known_units(self) -> frozenset[bytes]:
        """Returns the keyed hashes of all units in any version of the data.

        Raises:
            LedgerInvalid: the file cannot be read.
        """
        if not self._path.exists():
            return frozenset()
        try:
            with _opened(self._path, write=False) as database:
                rows = database.execute("SELECT DISTINCT unit FROM units").fetchall()
        except sqlite3.Error as error:
            raise LedgerInvalid(f"{self._path} cannot be read: {error}.") from error
        return frozenset(bytes(unit) for (unit,) in rows)

    def append(self, kind: str, body: Mapping[str, Any]) -> ChainRecord:
        """Writes one entry; returns once it is on disk.

        Raises:
            LedgerInvalid: another process has written to the ledger, or it cannot be written;
                nothing was appended.
            DiskFull: likewise, for want of room.
        """
        return self._write(kind, body, ())

    def add_version(self, dataset: str, unit: str, units: frozenset[bytes]) -> str:
        """Puts a version of the data on record, and returns its name.

        One entry each time, also of a version that is known: how long the ledger is leaves the
        site, and would tell when somebody came or went.

        Args:
            dataset: the operator's name for the data.
            unit: what one unit is.
            units: keyed hashes of all units in it.

        Raises:
            LedgerInvalid: see `append`.
        """
        version = version_of(units)
        new = version not in self.contents.overlaps
        body = {"dataset": dataset, "unit": unit, "version": version}
        self._write("data", body, units if new else ())
        if new:
            self.contents.overlaps = read_ledger(self._path, self._key.public_hex).overlaps
        return version

    def _write(self, kind: str, body: Mapping[str, Any], units: Iterable[bytes]) -> ChainRecord:
        records = list(self.contents.records)
        lines = []
        if not records:
            opening, line = next_record(
                [], "open", {"public_key": self._key.public_hex}, self._key, LEDGER_DOMAIN
            )
            records.append(opening)
            lines.append(line)
        # A clock that was set back must not put a charge before a period that is still running.
        latest = records[-1].time
        record, line = next_record(records, kind, body, self._key, LEDGER_DOMAIN, latest)
        lines.append(line)
        before = len(self.contents.records)
        try:
            with needs_room(self._path.parent), _opened(self._path) as database:
                database.executescript(_SCHEMA)
                database.execute("BEGIN IMMEDIATE")
                (count,) = database.execute("SELECT COUNT(*) FROM entries").fetchone()
                if count != before:
                    raise LedgerInvalid(
                        f"{self._path} changed under its writer: another process works on the "
                        "same folder, or an older copy was put back; end it, and open it again."
                    )
                database.executemany("INSERT INTO entries VALUES (?, ?)", enumerate(lines, before))
                version = str(body.get("version", ""))
                database.executemany(
                    "INSERT INTO units VALUES (?, ?)", ((unit, version) for unit in units)
                )
                database.execute("COMMIT")
        except sqlite3.Error as error:
            raise LedgerInvalid(f"{self._path} cannot be written: {error}.") from error
        self.contents.records = [*records, record]
        return record


def _count(path: Path) -> int:
    try:
        with _opened(path, write=False) as database:
            (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if not tables:
                return 0
            (count,) = database.execute("SELECT COUNT(*) FROM entries").fetchone()
            return int(count)
    except sqlite3.Error as error:
        raise LedgerInvalid(f"{path} is no ledger, or damaged: {error}.") from error


def read_ledger(path: Path, expected_key: str) -> LedgerContents:
    """Reads and verifies a ledger.

    Raises:
        LedgerInvalid: naming the first thing that does not verify.
    """
    try:
        with _opened(path, write=False) as database:
            (tables,) = database.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
            if not tables:  # a crash while the file was made
                return LedgerContents()
            rows = database.execute("SELECT sequence, line FROM entries ORDER BY sequence")
            numbered = rows.fetchall()
            units = database.execute("SELECT version, unit FROM units").fetchall()
            shared = database.execute(
                "SELECT DISTINCT a.version, b.version FROM units a JOIN units b USING (unit)"
            ).fetchall()
    except sqlite3.Error as error:
        raise LedgerInvalid(f"{path} is no ledger, or damaged: {error}.") from error
    if [sequence for sequence, _ in numbered] != list(range(len(numbered))):
        raise LedgerInvalid(f"{path}: entries are missing.")
    try:
        records = list(
            read_chain((_bytes(line) for _, line in numbered), path, LEDGER_DOMAIN, expected_key)
        )
    except (AuditError, TypeError) as error:
        raise LedgerInvalid(str(error)) from error
    _check_units(path, records, units)
    check_releases(path, records)
    overlaps: dict[str, set[str]] = {
        str(record.body["version"]): {str(record.body["version"])}
        for record in records
        if record.kind == "data"
    }
    for one, other in shared:
        overlaps[one].add(other)
    return LedgerContents(records, overlaps)


def read_lines(path: Path) -> list[bytes]:
    """Returns the lines of a ledger's chain, unchecked; `read_ledger` checks them.

    Raises:
        LedgerInvalid: the file cannot be read.
    """
    try:
        with _opened(path, write=False) as database:
            rows = database.execute("SELECT line FROM entries ORDER BY sequence").fetchall()
        return [_bytes(line) for (line,) in rows]
    except (sqlite3.Error, TypeError) as error:
        raise LedgerInvalid(f"{path} is no ledger, or damaged: {error}.") from error


def _bytes(line: object) -> bytes:
    if not isinstance(line, bytes):
        raise TypeError("An entry of the ledger is no sequence of bytes: it was altered.")
    return line


def version_of(units: frozenset[bytes]) -> str:
    """Returns the name of a version of the data: a hash of the hashes of its units."""
    return hashlib.sha256(b"".join(sorted(units))).hexdigest()


def _check_units(path: Path, records: list[ChainRecord], rows: list[tuple[str, bytes]]) -> None:
    units: dict[str, set[bytes]] = {}
    for version, unit in rows:
        units.setdefault(version, set()).add(bytes(unit))
    known = {str(record.body["version"]) for record in records if record.kind == "data"}
    for version in known:
        if version_of(frozenset(units.pop(version, set()))) != version:
            raise LedgerInvalid(f"{path}: the people of version {version[:12]}… were altered.")
    if units:
        raise LedgerInvalid(f"{path}: it lists people of data that no entry names.")


def check_releases(path: Path, records: list[ChainRecord]) -> None:
    """Checks that each release uses up a charge before it, once.

    Raises:
        LedgerInvalid: naming the entry that does not.
    """
    open_charges: set[str] = set()
    for record in records:
        if record.kind == "charge":
            open_charges.add(record.hash)
        elif record.kind == "release":
            charge = str(record.body["charge"])
            if charge not in open_charges:
                raise LedgerInvalid(f"{path}: entry {record.sequence} releases without a charge.")
            open_charges.remove(charge)


@contextlib.contextmanager
def _opened(path: Path, *, write: bool = True) -> Iterator[sqlite3.Connection]:
    # Opened for each use: a thousand simulated sites would otherwise hold thousands of files.
    name = str(path) if write else f"{path.resolve().as_uri()}?mode=rw"
    database = sqlite3.connect(name, uri=not write, isolation_level=None, timeout=10)
    try:
        if write:
            path.chmod(0o600)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=FULL")
        yield database
    finally:
        database.close()
