"""Hash-chained, signed records: what the audit log and the privacy ledger are made of.

A record is canonical JSON. Its ``hash`` is the SHA-256 of the record without ``hash`` and
``signature``; ``previous`` is the hash of the record before it; ``signature`` is Ed25519 over
the chain's domain and the hash. Whoever changes, drops, inserts or reorders records breaks the
chain. Cutting off the newest records leaves a valid shorter chain, so others witness its heads.
"""

import hashlib
import json
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_common.errors import AuditError
from lepton_common.identity.keys import SigningKey, verify

GENESIS = "0" * 64


@dataclass(frozen=True)
class ChainRecord:
    """One record.

    Attributes:
        sequence: position in the chain, from 0.
        kind: what happened, for example ``open``, ``charge``, ``release``.
        body: the details; JSON values only.
        time: when it was written, in seconds since 1970, by the writer's clock.
        hash: hexadecimal SHA-256 that chains and identifies the record.
    """

    sequence: int
    kind: str
    body: dict[str, Any]
    time: float
    hash: str


@dataclass(frozen=True)
class Extract:
    """Part of a chain, of whose other records only hashes and signatures are known.

    Attributes:
        records: those shown in full.
        hashes: of all records, in order; the last one is the head.
    """

    records: list[ChainRecord]
    hashes: list[str]


def head_of(records: list[ChainRecord]) -> str:
    """Returns the hash of the newest record."""
    return records[-1].hash if records else GENESIS


def next_record(
    records: list[ChainRecord],
    kind: str,
    body: Mapping[str, Any],
    key: SigningKey,
    domain: bytes,
    not_before: float = 0.0,
) -> tuple[ChainRecord, bytes]:
    """Returns the record that follows a chain, of which the newest is enough, and its signed line.

    Its time is the clock's, or ``not_before`` where the clock is behind that.
    """
    sequence = records[-1].sequence + 1 if records else 0
    fields = {
        "sequence": sequence,
        "previous": head_of(records),
        "time": max(round(time.time(), 3), not_before),
        "kind": kind,
        "body": dict(body),
    }
    digest = _digest(fields)
    signature = key.sign(domain + bytes.fromhex(digest)).hex()
    line = _canonical({**fields, "hash": digest, "signature": signature})
    return ChainRecord(sequence, kind, dict(body), float(str(fields["time"])), digest), line


def read_chain(
    lines: Iterable[bytes], path: Path, domain: bytes, expected_key: str | None = None
) -> Iterator[ChainRecord]:
    """Yields the records of a chain, each verified before it is yielded.

    Args:
        lines: the records' lines.
        path: where they come from, for messages.
        domain: what the chain's signatures begin with.
        expected_key: hexadecimal public key that must have signed it; without it, the key that
            the first record names.

    Raises:
        AuditError: naming the first record that does not verify.
    """
    for _, record in _read(lines, path, domain, expected_key):
        assert record is not None, "only an extract withholds records"
        yield record


def withhold(lines: Iterable[bytes], shown: Container[int]) -> list[bytes]:
    """Returns the lines of a chain; of records not shown, their hash and signature alone.

    The first record, which names the chain's key, is always shown.
    """
    kept = []
    for sequence, line in enumerate(lines):
        if sequence and sequence not in shown:
            fields = json.loads(line)
            line = _canonical({"hash": fields["hash"], "signature": fields["signature"]})
        kept.append(line)
    return kept


def read_extract(
    lines: Iterable[bytes], path: Path, domain: bytes, expected_key: str | None = None
) -> Extract:
    """Returns what `withhold` left of a chain, verified.

    A record in full is held against the hash before it. Of a withheld one, the signature shows
    that the chain's owner wrote it, and its place is as the extract says.

    Raises:
        AuditError: naming the first record that does not verify.
    """
    found = Extract([], [])
    for digest, record in _read(lines, path, domain, expected_key, partly=True):
        found.hashes.append(digest)
        if record is not None:
            found.records.append(record)
    return found


def _read(
    lines: Iterable[bytes],
    path: Path,
    domain: bytes,
    expected_key: str | None,
    *,
    partly: bool = False,
) -> Iterator[tuple[str, ChainRecord | None]]:
    """Yields each record with its hash; None for one that an extract withholds."""
    previous, public_key = GENESIS, expected_key or ""
    for sequence, line in enumerate(lines):
        where = f"{path}: record {sequence}"
        record = None
        try:
            fields = json.loads(line)
            digest, signature = fields.pop("hash"), bytes.fromhex(fields.pop("signature"))
            signed = domain + bytes.fromhex(digest)
            if sequence == 0:
                named = str(fields["body"]["public_key"])
                public_key = expected_key or named
                if fields["kind"] != "open" or named != public_key:
                    raise AuditError(f"{where} does not open the log with the expected key.")
            if fields or not partly:
                record = ChainRecord(
                    fields["sequence"],
                    fields["kind"],
                    fields["body"],
                    float(fields["time"]),
                    digest,
                )
            again = _canonical({**fields, "hash": digest, "signature": signature.hex()})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise AuditError(f"{where} is not a record; the log was altered.") from error
        if again != line or (record is not None and _digest(fields) != digest):
            raise AuditError(f"{where} was altered: its hash does not match its content.")
        if record is not None and (fields["previous"], record.sequence) != (previous, sequence):
            raise AuditError(f"{where} does not follow the one before it: records are missing.")
        if not verify(public_key, signature, signed):
            raise AuditError(f"{where} has a wrong signature: another key wrote it.")
        previous = digest
        yield digest, record


def verify_heads(path: Path, records: list[ChainRecord], witnessed: list[str]) -> None:
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
