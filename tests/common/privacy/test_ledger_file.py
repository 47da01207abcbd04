"""The privacy ledger's file: what it proves, and each way to alter it that it finds."""

import contextlib
import os
import shutil
import sqlite3
import stat

import pytest

from lepton_common.chain import GENESIS, verify_heads
from lepton_common.errors import AuditError, DiskFull, LedgerInvalid
from lepton_common.identity.keys import SigningKey
from lepton_common.privacy import ledger_file
from lepton_common.privacy.ledger_file import LedgerFile, read_ledger, version_of

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
ANN, BOB, CID = b"a" * 16, b"b" * 16, b"c" * 16


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.db"


@pytest.fixture
def ledger(path):
    """A ledger with two versions of the data, three charges and one release."""
    ledger = LedgerFile(path, KEY)
    version = ledger.add_version("patients", "patient", frozenset({ANN, BOB}))
    first = ledger.append("charge", {"round": 1, "version": version})
    ledger.append("release", {"charge": first.hash})
    ledger.append("charge", {"round": 2, "version": version})
    ledger.add_version("patients-2", "patient", frozenset({BOB, CID}))
    ledger.append("charge", {"round": 3, "version": version})
    return ledger


def alter(path, *statements):
    with sqlite3.connect(path) as database:
        for trigger in ("kept", "unchanged"):
            database.execute(f"DROP TRIGGER {trigger}")
        for statement in statements:
            database.execute(statement)
    database.close()


def test_entries_survive_and_verify(path, ledger):
    found = read_ledger(path, KEY.public_hex)
    assert found.records == ledger.contents.records
    kinds = [record.kind for record in found.records]
    assert kinds == ["open", "data", "charge", "release", "charge", "data", "charge"]
    assert found.head == ledger.contents.head
    assert LedgerFile(path, KEY).contents == ledger.contents


def test_a_new_ledger_is_empty_and_makes_no_file(path):
    assert LedgerFile(path, KEY).contents.head == GENESIS
    assert not path.exists()


def test_versions_know_whom_they_share(path):
    ledger = LedgerFile(path, KEY)
    one = ledger.add_version("a", "patient", frozenset({ANN, BOB}))
    two = ledger.add_version("b", "patient", frozenset({BOB, CID}))
    alone = ledger.add_version("c", "patient", frozenset({b"d" * 16}))
    assert ledger.contents.overlaps == {one: {one, two}, two: {one, two}, alone: {alone}}


def test_the_same_people_are_one_version_under_any_name(path):
    ledger = LedgerFile(path, KEY)
    one = ledger.add_version("a", "patient", frozenset({ANN, BOB}))
    assert ledger.add_version("renamed", "patient", frozenset({BOB, ANN})) == one
    assert [r.kind for r in ledger.contents.records] == ["open", "data", "data"]
    assert read_ledger(path, KEY.public_hex) == ledger.contents


def test_data_without_anyone_is_a_version_too(path):
    ledger = LedgerFile(path, KEY)
    version = ledger.add_version("empty", "row", frozenset())
    assert version == version_of(frozenset())
    assert read_ledger(path, KEY.public_hex).overlaps == {version: {version}}


def test_another_key_is_refused(path, ledger):
    with pytest.raises(LedgerInvalid, match="expected key"):
        read_ledger(path, OTHER.public_hex)
    with pytest.raises(LedgerInvalid):
        LedgerFile(path, OTHER)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET line = replace(line, '\"round\":1', '\"round\":9') WHERE sequence = 2",
        "DELETE FROM entries WHERE sequence = 3",
        "DELETE FROM entries WHERE sequence = 0",
        "UPDATE entries SET sequence = 99 WHERE sequence = 6",
        "INSERT INTO entries SELECT 7, line FROM entries WHERE sequence = 2",
        "UPDATE entries SET line = 'x' WHERE sequence = 2",
        "UPDATE entries SET line = 5 WHERE sequence = 2",
        f"DELETE FROM units WHERE unit = x'{ANN.hex()}'",
        f"UPDATE units SET unit = x'{CID.hex()}' WHERE unit = x'{ANN.hex()}'",
        f"INSERT INTO units VALUES (x'{CID.hex()}', 'another')",
        "DELETE FROM units",
        "DROP TABLE units",
        "DROP TABLE entries",
    ],
)
def test_each_alteration_is_found(path, ledger, statement):
    alter(path, statement)
    with pytest.raises(LedgerInvalid):
        read_ledger(path, KEY.public_hex)
    with pytest.raises(LedgerInvalid):
        LedgerFile(path, KEY)


def test_what_is_written_cannot_be_changed_by_accident(path, ledger):
    with sqlite3.connect(path) as database:
        for statement in ("DELETE FROM entries", "UPDATE entries SET line = 'x'"):
            with pytest.raises(sqlite3.IntegrityError, match="only appended"):
                database.execute(statement)
    database.close()


@pytest.mark.parametrize("last", [6, 5, 2])
def test_a_cut_ledger_verifies_in_itself_and_is_found_by_its_witness(path, ledger, last):
    versions = (
        "SELECT json_extract(CAST(line AS TEXT), '$.body.version') FROM entries "
        "WHERE CAST(line AS TEXT) LIKE '%\"version\"%'"
    )
    alter(
        path,
        f"DELETE FROM entries WHERE sequence >= {last}",
        f"DELETE FROM units WHERE version NOT IN ({versions})",
    )
    records = read_ledger(path, KEY.public_hex).records
    assert len(records) == last
    with pytest.raises(AuditError, match="rolled back"):
        verify_heads(path, records, [ledger.contents.head])


def test_an_older_copy_put_back_is_found_by_its_writer(path, tmp_path):
    ledger = LedgerFile(path, KEY)
    ledger.append("charge", {"round": 1})
    shutil.copy(path, tmp_path / "copy")
    ledger.append("charge", {"round": 2})
    for name in ("ledger.db-wal", "ledger.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    shutil.copy(tmp_path / "copy", path)
    with pytest.raises(LedgerInvalid, match="another process"):
        ledger.append("charge", {"round": 3})


def test_two_writers_cannot_both_append(path):
    first, second = LedgerFile(path, KEY), LedgerFile(path, KEY)
    first.append("charge", {"round": 1})
    with pytest.raises(LedgerInvalid, match="another process"):
        second.append("charge", {"round": 1})
    assert len(read_ledger(path, KEY.public_hex).records) == 2


def test_a_release_needs_an_open_charge(path):
    ledger = LedgerFile(path, KEY)
    charge = ledger.append("charge", {"round": 1})
    ledger.append("release", {"charge": charge.hash})
    ledger.append("release", {"charge": charge.hash})
    with pytest.raises(LedgerInvalid, match="entry 3 releases without a charge"):
        read_ledger(path, KEY.public_hex)


@pytest.mark.parametrize("content", [b"", b"not a database", b"SQLite format 3\0" + b"x" * 200])
def test_what_is_no_ledger_is_refused_or_empty(path, content):
    path.write_bytes(content)
    if content:
        with pytest.raises(LedgerInvalid, match="no ledger"):
            read_ledger(path, KEY.public_hex)
    else:  # a crash while the file was made
        assert read_ledger(path, KEY.public_hex).records == []


def test_a_ledger_on_a_full_disk_says_so_and_appends_nothing(path, ledger, monkeypatch):
    opened = ledger_file._opened

    @contextlib.contextmanager
    def small(path, *, write=True):
        with opened(path, write=write) as database:
            database.execute("PRAGMA max_page_count=1")  # what there is, and no more
            yield database

    known = len(ledger.contents.records)
    with monkeypatch.context() as patched:
        patched.setattr(ledger_file, "_opened", small)
        with pytest.raises(DiskFull, match=f"disk of {path.parent}"):
            ledger.append("charge", {"round": "x" * 20_000})
    assert len(read_ledger(path, KEY.public_hex).records) == len(ledger.contents.records) == known
    ledger.append("charge", {"round": 4, "version": "v"})


def test_a_ledger_that_cannot_be_written_appends_nothing(path, ledger, monkeypatch):
    before = ledger.contents.head
    with sqlite3.connect(path, isolation_level=None) as database:
        database.execute("DROP TABLE units")
        database.execute("CREATE VIEW units AS SELECT 1")
    database.close()
    with pytest.raises(LedgerInvalid, match="cannot be written"):
        ledger.add_version("more", "patient", frozenset({CID}))
    assert ledger.contents.head == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX modes")
def test_only_the_owner_can_read_it(path, ledger):
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
