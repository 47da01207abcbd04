"""A site's or the server's log: one line per chained, signed record, verifiable offline.

Heads ride in each reply and the server's log witnesses them, so that a log that was cut shows.
"""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lepton_common.chain import ChainRecord, head_of, next_record, read_chain
from lepton_common.durable import append_synced, write_atomic
from lepton_common.errors import AuditError
from lepton_common.identity.keys import SigningKey

AUDIT_DOMAIN = b"lepton/audit/v1"


class AuditLog:
    """The writer of one log; each `append` is on disk before it returns.

    Attributes:
        records: all of them, or with a reader the newest only.
    """

    def __init__(
        self,
        path: Path,
        key: SigningKey,
        owner: str,
        reader: Callable[[ChainRecord], None] | None = None,
    ) -> None:
        """Opens the log, verifying what is there, or begins it with an ``open`` record.

        Args:
            path: its file.
            key: signs it.
            owner: whose it is.
            reader: is shown each record, those that are there and those to come, so that a log
                that grows and grows need not be in memory.

        A torn last line (a crash in mid-write) is cut off: such a record was never reported
        as written, so nothing was done on its strength.

        Raises:
            AuditError: what is there does not verify, or was written by another key.
        """
        self._path, self._key, self._reader = path, key, reader
        self._lock = threading.Lock()
        self.records: list[ChainRecord] = []
        self._size = 0
        if path.exists():
            data = path.read_bytes()
            whole = data[: data.rfind(b"\n") + 1]
            if whole != data:
                write_atomic(path, whole)
            self._size = len(whole)
            if whole:
                for record in read_records(path, expected_key=key.public_hex):
                    self._take(record)
        if not self.records:
            self.append("open", {"owner": owner, "public_key": key.public_hex})

    @property
    def head(self) -> str:
        """The hash of the newest record."""
        return head_of(self.records)

    def append(self, kind: str, body: Mapping[str, Any]) -> ChainRecord:
        """Signs and writes one record; returns once it is on disk.

        Raises:
            AuditError: another process has written to the log; nothing was appended.
            DiskFull, OSError: the disk is full, or gone; nothing was appended.
        """
        with self._lock:
            record, line = next_record(self.records, kind, body, self._key, AUDIT_DOMAIN)
            self._write(line + b"\n")
            self._take(record)
            return record

    def _take(self, record: ChainRecord) -> None:
        if self._reader is not None:
            self.records.clear()
            self._reader(record)
        self.records.append(record)

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


def read_records(path: Path, expected_key: str | None = None) -> Iterator[ChainRecord]:
    """Yields the records of a log, each verified before it is yielded.

    Args:
        path: the log file.
        expected_key: hexadecimal public key that must have signed it; without it, the key that
            the first record names.

    Raises:
        AuditError: naming the first record that does not verify.
    """
    yield from read_chain(_lines(path), path, AUDIT_DOMAIN, expected_key)


def _lines(path: Path) -> Iterator[bytes]:
    """Yields the lines of a log, one at a time."""
    number = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    raise AuditError(
                        f"{path}: record {number - 1} is torn; the log was cut in mid-write."
                    )
                yield line[:-1]
    except OSError as error:
        raise AuditError(f"Cannot read the audit log {path}: {error.strerror}.") from error
    if number == 0:
        raise AuditError(f"{path}: the log is empty; every log begins with an 'open' record.")
