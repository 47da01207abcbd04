"""A hash-chained, signed log: one line per record, verifiable offline.

A record is one line of canonical JSON. Its ``hash`` is the SHA-256 of the record without
``hash`` and ``signature``; ``previous`` is the hash of the record before it; ``signature`` is
Ed25519 over ``lepton/audit/v1`` and the hash. Whoever changes, drops, inserts or reorders
records breaks the chain. Cutting off the newest records leaves a valid shorter chain, so heads
ride in each reply and the server's log witnesses them (`verify_heads`).
"""

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_common.durable import append_synced, write_atomic
from lepton_common.errors import AuditError
from lepton_common.identity.keys import SigningKey, verify

GENESIS = "0" * 64
_DOMAIN = b"lepton/audit/v1"


@dataclass(frozen=True)
class AuditRecord:
    """One verified record.

    Attributes:
        sequence: position in the log, from 0.
        kind: what happened, for example ``open``, ``charge``, ``release``.
        body: the details; JSON values only.
        hash: hexadecimal SHA-256 that chains and identifies the record.
    """

    sequence: int
    kind: str
    body: dict[str, Any]
    hash: str


class AuditLog:
    """The writer of one log; each `append` is on disk before it returns."""

    def __init__(self, path: Path, key: SigningKey, owner: str) -> None:
        """Opens the log, verifying what is there, or begins it with an ``open`` record.

        A torn last line (a crash in mid-write) is cut off: such a record was never reported
        as written, so nothing was done on its strength.

        Raises:
            AuditError: what is there does not verify, or was written by another key.
        """
        self._path, self._key = path, key
        self._lock = threading.Lock()
        self.records: list[AuditRecord] = []
        self._size = 0
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                write_atomic(path, whole)
            self._size = len(whole)
            if whole:
                self.records = list(read_records(path, expected_key=key.public_hex))
        if not self.records:
            self.append("open", {"owner": owner, "public_key": key.public_hex})

    @property
    def head(self) -> str:
        """The hash of the newest record."""
        return self.records[-1].hash if self.records else GENESIS

    def append(self, kind: str, body: Mapping[str, Any]) -> AuditRecord:
        """Signs and writes one record; returns once it is on disk.

        Raises:
            AuditError: another process has written to the log; nothing was appended.
            OSError: the disk is full or gone; nothing was appended.
        """
        with self._lock:
            fields = {
                "sequence": len(self.records),
                "previous": self.head,
                "time": round(time.time(), 3),
                "kind": kind,
                "body": dict(body),
            }
            digest = _digest(fields)
            signature = self._key.sign(_DOMAIN + bytes.fromhex(digest)).hex()
            line = _canonical({**fields, "hash": digest, "signature": signature}) + b"\n"
            self._write(line)
            record = AuditRecord(len(self.records), kind, dict(body), digest)
            self.records.append(record)
            return record

    def _write(self, line: bytes) -> None:
        """Appends a line whole or not at all, so that a full disk leaves a log that verifies."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            raise AuditError(
                f"{self._path} changed under its writer: another process works on the same "
                "folder; end it, and open the folder again."
            )
        try:
            append_synced(self._path, line)
        except OSError:
            if self._path.is_file():
                os.truncate(self._path, size)
            raise
        self._size += len(line)


def read_records(path: Path, expected_key: str | None = None) -> Iterator[AuditRecord]:
    """Yields the records of a log, each verified before it is yielded.

    Args:
        path: the log file.
        expected_key: hexadecimal public key that must have signed it; without it, the key that
            the first record names.

    Raises:
        AuditError: naming the first record that does not verify.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise AuditError(f"Cannot read the audit log {path}: {error.strerror}.") from error
    if lines[-1] != b"":
        raise AuditError(f"{path}: record {len(lines) - 1} is torn; the log was cut in mid-write.")
    if len(lines) == 1:
        raise AuditError(f"{path}: the log is empty; every log begins with an 'open' record.")
    previous, public_key = GENESIS, expected_key or ""
    for sequence, line in enumerate(lines[:-1]):
        where = f"{path}: record {sequence}"
        try:
            fields = json.loads(line)
            digest, signature = fields.pop("hash"), bytes.fromhex(fields.pop("signature"))
            if sequence == 0:
                named = str(fields["body"]["public_key"])
                public_key = expected_key or named
                if fields["kind"] != "open" or named != public_key:
                    raise AuditError(f"{where} does not open the log with the expected key.")
            record = AuditRecord(fields["sequence"], fields["kind"], fields["body"], digest)
            again = _canonical({**fields, "hash": digest, "signature": signature.hex()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AuditError(f"{where} is not a record; the log was altered.") from error
        if again != line or _digest(fields) != digest:
            raise AuditError(f"{where} was altered: its hash does not match its content.")
        if fields["previous"] != previous or record.sequence != sequence:
            raise AuditError(f"{where} does not follow the one before it: records are missing.")
        if not verify(public_key, signature, _DOMAIN + bytes.fromhex(digest)):
            raise AuditError(f"{where} has a wrong signature: another key wrote it.")
        previous = digest
        yield record


def verify_heads(path: Path, records: list[AuditRecord], witnessed: list[str]) -> None:
    """Checks that every head another party has seen is still in the log.

    Raises:
        AuditError: a witnessed head is gone, so the log was cut or rolled back.
    """
    hashes = {record.hash for record in records}
    for head in witnessed:
        if head not in hashes:
            raise AuditError(
                f"{path}: the record {head[:12]}…, which the server witnessed, is gone: "
                "the log was cut or rolled back."
            )


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    ).encode("ascii")


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(fields)).hexdigest()
