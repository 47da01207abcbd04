"""Tests of the audit log: whatever is done to a log, it no longer verifies."""

import hashlib
import json
import resource
import tracemalloc

import pytest

from lepton_common.audit import AUDIT_DOMAIN, AuditLog, read_records
from lepton_common.chain import GENESIS, read_chain, read_extract, verify_heads, withhold
from lepton_common.errors import AuditError
from lepton_common.identity.keys import SigningKey


@pytest.fixture(scope="module")
def key():
    return SigningKey.generate()


@pytest.fixture
def log(tmp_path, key):
    log = AuditLog(tmp_path / "audit.jsonl", key, "a site")
    log.append("charge", {"round": 1, "epsilon": 0.5})
    log.append("release", {"round": 1, "items": [{"name": "update", "bytes": 4}]})
    return log


@pytest.fixture
def path(log, tmp_path):
    return tmp_path / "audit.jsonl"


def _refused(path, lines_or_data, key=None):
    data = lines_or_data
    path.write_bytes(data if isinstance(data, bytes) else b"".join(data))
    with pytest.raises(AuditError):
        list(read_records(path, key and key.public_hex))


def _forge(key, *bodies):
    """Writes a log with right hashes and signatures and the given records."""
    lines, previous = [], GENESIS
    for sequence, (kind, body) in enumerate(bodies):
        fields = {"sequence": sequence, "previous": previous, "time": 0, "kind": kind, "body": body}
        text = json.dumps(fields, sort_keys=True, separators=(",", ":"))
        previous = hashlib.sha256(text.encode()).hexdigest()
        signature = key.sign(b"lepton/audit/v1" + bytes.fromhex(previous)).hex()
        whole = {**fields, "hash": previous, "signature": signature}
        lines.append(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return b"".join(lines)


def test_a_log_verifies_and_reads_back_what_was_written(log, path, key):
    assert list(read_records(path)) == log.records
    assert list(read_records(path, key.public_hex)) == log.records
    assert [record.kind for record in log.records] == ["open", "charge", "release"]
    assert [record.sequence for record in log.records] == [0, 1, 2]
    assert log.records[0].body == {"owner": "a site", "public_key": key.public_hex}
    assert log.records[1].body == {"round": 1, "epsilon": 0.5}
    assert log.head == log.records[-1].hash


def test_the_format_is_the_one_that_other_tools_were_told(path, key):
    data = _forge(key, ("open", {"public_key": key.public_hex}), ("note", {"é": [1, None]}))
    path.write_bytes(data)
    assert [record.kind for record in read_records(path, key.public_hex)] == ["open", "note"]


def test_every_change_of_a_single_byte_is_refused(path, key):
    data = path.read_bytes()
    for place in range(len(data)):
        # Alternating, because 0x20 turns a letter into its other case.
        flip = (0x01, 0x20)[place % 2]
        _refused(path, data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :])


def test_a_deleted_or_doubled_byte_is_refused(path):
    data = path.read_bytes()
    for place in range(0, len(data) - 1, 5):
        _refused(path, data[:place] + data[place + 1 :])
        _refused(path, data[:place] + data[place : place + 1] + data[place:])


def test_dropping_inserting_and_reordering_records_is_refused(path):
    first, second, third = path.read_bytes().splitlines(keepends=True)
    for altered in (
        [second, third],
        [first, third],
        [first, third, second],
        [second, first, third],
        [first, second, second, third],
        [first, second, third, third],
        [first, first, second, third],
        [first, b"\n", second, third],
        [first, second, third, b"\n"],
        [b"\n"],
    ):
        _refused(path, altered)


def test_a_record_of_another_log_does_not_fit(path, key, tmp_path):
    other = AuditLog(tmp_path / "other.jsonl", key, "another site")
    other.append("charge", {"round": 1, "epsilon": 0.1})
    first, _, third = path.read_bytes().splitlines(keepends=True)
    foreign = (tmp_path / "other.jsonl").read_bytes().splitlines(keepends=True)[1]
    _refused(path, [first, foreign, third])
    _refused(path, [first, foreign])
    assert len(list(read_records(tmp_path / "other.jsonl"))) == 2


def test_another_key_is_refused_by_reader_and_writer(path):
    other = SigningKey.generate()
    with pytest.raises(AuditError, match="expected key"):
        list(read_records(path, other.public_hex))
    with pytest.raises(AuditError, match="expected key"):
        AuditLog(path, other, "a site")


def test_a_chain_that_another_key_signed_is_refused(path, key):
    _refused(path, _forge(SigningKey.generate(), ("open", {"public_key": key.public_hex})))


def test_a_log_goes_on_where_it_was_left(log, path, key):
    again = AuditLog(path, key, "a site")
    assert again.records == log.records
    again.append("refusal", {"error": "BudgetSpent"})
    assert [record.kind for record in read_records(path)] == [
        "open",
        "charge",
        "release",
        "refusal",
    ]


@pytest.mark.parametrize("torn", [1, 20, 150])
def test_a_torn_last_line_is_cut_and_the_log_goes_on(path, key, torn):
    whole = path.read_bytes()
    line = whole.splitlines(keepends=True)[-1]
    path.write_bytes(whole + line[:torn])
    with pytest.raises(AuditError, match="torn"):
        list(read_records(path))
    log = AuditLog(path, key, "a site")
    assert path.read_bytes() == whole
    log.append("refusal", {})
    assert len(list(read_records(path, key.public_hex))) == 4


def test_a_first_line_torn_off_begins_the_log_anew(path, key):
    path.write_bytes(path.read_bytes()[:30])
    assert [record.kind for record in AuditLog(path, key, "a site").records] == ["open"]
    assert len(list(read_records(path, key.public_hex))) == 1


def test_a_damaged_log_is_not_opened(path, key):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"charge"', b'"chargf"'))
    with pytest.raises(AuditError, match="record 1 was altered"):
        AuditLog(path, key, "a site")


def test_an_empty_or_missing_file_is_no_log_to_a_reader(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(AuditError, match="empty"):
        list(read_records(empty))
    with pytest.raises(AuditError, match="Cannot read"):
        list(read_records(tmp_path / "missing.jsonl"))


def test_an_empty_file_is_begun_by_a_writer(tmp_path, key):
    path = tmp_path / "empty.jsonl"
    path.touch()
    AuditLog(path, key, "a site")
    assert len(list(read_records(path))) == 1


def test_cutting_off_the_newest_records_is_seen_by_a_witness(log, path):
    seen = [record.hash for record in log.records]
    verify_heads(path, list(read_records(path)), seen)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    shorter = list(read_records(path))
    verify_heads(path, shorter, seen[:2])
    with pytest.raises(AuditError, match=seen[2][:12]):
        verify_heads(path, shorter, seen)


@pytest.mark.parametrize(
    "line",
    [b"[]", b"null", b"5", b'"x"', b"{}", b"\xff\xfe", b"{", b"NaN", b"[" * 100_000, b"9" * 5000],
    ids=["list", "null", "number", "text", "empty", "bytes", "torn", "nan", "deep", "long"],
)
def test_a_line_that_is_no_record_is_refused(path, line):
    _refused(path, line + b"\n")
    _refused(path, path.read_bytes() + line + b"\n")


@pytest.mark.parametrize("public_key", [None, 5, 0, "", [], {}, True, "zz"])
def test_a_log_that_names_no_real_key_is_refused(path, key, public_key):
    _refused(path, _forge(key, ("open", {"public_key": public_key})))


@pytest.mark.parametrize("body", [None, 5, "x", [], {}])
def test_a_first_record_without_the_right_body_is_refused(path, key, body):
    _refused(path, _forge(key, ("open", body)))
    _refused(path, _forge(key, ("close", {"public_key": key.public_hex})))


def test_what_json_cannot_hold_is_not_written(log, path):
    before = path.read_bytes()
    for body in ({"x": float("nan")}, {"x": float("inf")}, {"x": b"bytes"}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            log.append("note", body)
    assert path.read_bytes() == before
    log.append("note", {"x": 1})
    assert len(list(read_records(path))) == 4


def test_a_write_that_a_full_disk_cut_short_does_not_spoil_the_log(log, path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40, limits[1]))
    try:
        with pytest.raises(OSError, match="large"):
            log.append("refusal", {"error": "a record that finds no room"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    log.append("refusal", {"error": "a record that finds room again"})
    assert list(read_records(path)) == log.records


def test_an_extract_withholds_all_but_what_is_shown(tmp_path):
    key, path = SigningKey.generate(), tmp_path / "audit.jsonl"
    log = AuditLog(path, key, "site-1")
    for number in range(5):
        log.append("release", {"run": f"run-{number}"})
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = withhold(lines, {2, 5})
    assert b"run-0" not in b"".join(kept)
    found = read_extract(kept, path, AUDIT_DOMAIN, key.public_hex)
    assert [record.sequence for record in found.records] == [0, 2, 5]
    assert found.hashes == [record.hash for record in log.records]
    bad = {
        "a hash of another's": [*kept[:3], withhold(other_lines(tmp_path), {})[3], *kept[4:]],
        "one left out": [*kept[:4], kept[5]],
        "swapped before one that is shown": [kept[0], kept[2], kept[1], *kept[3:]],
        "the last one swapped": [*kept[:3], kept[4], kept[3], kept[5]],
        "a field more": [*kept[:3], kept[3][:-1] + b',"time":1}', *kept[4:]],
        "no hash": [*kept[:3], kept[3].replace(b'"hash":"', b'"hash":"zz'), *kept[4:]],
    }
    for case in bad.values():
        with pytest.raises(AuditError):
            read_extract(case, path, AUDIT_DOMAIN, key.public_hex)
    with pytest.raises(AuditError):  # a log itself may withhold nothing
        list(read_chain(kept, path, AUDIT_DOMAIN, key.public_hex))


def other_lines(tmp_path):
    path = tmp_path / "other.jsonl"
    log = AuditLog(path, SigningKey.generate(), "site-1")
    for number in range(5):
        log.append("release", {"run": f"run-{number}"})
    return path.read_bytes().split(b"\n")[:-1]


def test_a_reader_is_shown_every_record_and_the_log_keeps_the_newest_only(path, key, log):
    read = []
    again = AuditLog(path, key, "a site", read.append)
    assert read == log.records
    assert again.records == log.records[-1:]
    again.append("note", {"n": 1})
    assert [record.kind for record in read] == ["open", "charge", "release", "note"]
    assert again.records == read[-1:]
    assert list(read_records(path, key.public_hex)) == read


def test_a_log_is_read_line_by_line(path, key, log):
    for number in range(100):
        log.append("note", {"text": f"{number}" * 2**14})
    log.records.clear()
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_records(path, key.public_hex)) == 103
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < path.stat().st_size / 4
