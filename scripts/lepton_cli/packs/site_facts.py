"""What a site's pack says of a run, computed from its log and ledger alone.

Whoever makes a pack and whoever verifies it compute the same.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lepton_cli.packs.extract import charged_to, of_run
from lepton_cli.site_evidence import SiteEvidence, site_evidence
from lepton_common.audit import AUDIT_DOMAIN
from lepton_common.chain import ChainRecord, Extract, read_extract
from lepton_common.errors import EvidenceContradicts, LedgerInvalid
from lepton_common.privacy.events import merge
from lepton_common.privacy.ledger_file import LEDGER_DOMAIN, check_releases

AUDIT, LEDGER, POLICY = "audit.jsonl", "ledger.jsonl", "policy.json"


@dataclass(frozen=True)
class SiteRecords:
    """A site's chains, verified as far as they are shown.

    Attributes:
        audit: its audit log.
        ledger: its privacy ledger; empty where nothing was charged.
        of_run: the run's records in the log.
        evidence: what the two prove.
    """

    audit: Extract
    ledger: Extract
    of_run: list[ChainRecord]
    evidence: SiteEvidence


def read_site_records(
    where: Path, site: str, run: str, key: str, members: Mapping[str, bytes]
) -> SiteRecords:
    """Returns the records in a site's pack, each verified, and held against each other.

    Raises:
        AuditError: a record does not verify, or something left without its charge.
        EvidenceContradicts: log and ledger do not fit each other, or the run.
    """
    audit = read_extract(members[AUDIT].split(b"\n")[:-1], where / AUDIT, AUDIT_DOMAIN, key)
    ledger = read_extract(members[LEDGER].split(b"\n")[:-1], where / LEDGER, LEDGER_DOMAIN, key)
    try:
        check_releases(where / LEDGER, ledger.records)
    except LedgerInvalid as error:
        raise EvidenceContradicts(str(error)) from None
    if not audit.records or audit.records[0].body["owner"] != site:
        raise EvidenceContradicts(f"{where / AUDIT} is not the log of {site}.")
    ours = [r for r in audit.records if r.sequence in of_run(audit.records, run)]
    charged = [r for r in ledger.records if r.kind != "charge" or r.body["run"] == run]
    _check_charges(where, ours, charged)
    return SiteRecords(audit, ledger, ours, site_evidence(site, ours, charged))


def _check_charges(where: Path, audit: list[ChainRecord], ledger: list[ChainRecord]) -> None:
    """Holds each private release against its charge: once in each, on the same model."""
    charges = {record.hash: record.body for record in ledger if record.kind == "charge"}
    used = {str(record.body["charge"]) for record in ledger if record.kind == "release"}
    for record in audit:
        if record.kind != "release" or record.body["charge"] is None:
            continue
        at = f"{where / AUDIT}: record {record.sequence}"
        charge = charges.get(record.body["charge"])
        if charge is None or record.body["charge"] not in used:
            raise EvidenceContradicts(f"{at} was released on a charge that {LEDGER} has not.")
        for name in ("round", "model"):
            if name in record.body and record.body[name] != charge[name]:
                raise EvidenceContradicts(f"{at} names another {name} than its charge.")


def site_facts(records: SiteRecords, run: str, policy: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what a site's pack says of a run."""
    found = records.evidence
    ours = records.of_run
    numbers = {record.sequence for record in ours}
    charges = [r for r in records.ledger.records if r.kind == "charge" and r.body["run"] == run]
    return {
        "times": [min(r.time for r in ours), max(r.time for r in ours)],
        "audit": _chain(records.audit, numbers),
        "ledger": _chain(
            records.ledger,
            charged_to(records.ledger.records, run)
            - {r.sequence for r in records.ledger.records if r.kind == "data"},
        ),
        "releases": found.releases,
        "bytes_left": found.bytes_left,
        "refusals": found.refusals,
        "without_dp": found.without_dp,
        "readable": found.readable,
        "conformance": found.engines,
        "data": dict(policy["data"]),
        "charged_data": sorted(
            {
                f"{r.body['dataset']} (unit {r.body['unit']})"
                for r in records.ledger.records
                if r.kind == "data" and r.body["version"] in {c.body["version"] for c in charges}
            }
        ),
        "plan": {
            "digests": sorted({str(charge.body["plan"]) for charge in charges}),
            "units": sorted(found.units),
            "mechanisms": [event.record() for event in merge(found.events)],
            "shared": None if found.shared is None else asdict(found.shared),
            "charges": len(charges),
            "delta": found.delta,
            "epsilon": as_epsilon(found.epsilon),
        },
        "models": _models([*ours, *charges]),
        "transcripts": [_transcript(r) for r in ours if r.kind == "release"],
    }


def as_epsilon(value: float | None) -> float | str | None:
    """Returns an epsilon as JSON can hold it."""
    return "unbounded" if value is not None and math.isinf(value) else value


def _chain(extract: Extract, numbers: set[int]) -> dict[str, Any]:
    """Returns how much of a chain is shown, and what is withheld amid the run's own records.

    Another run that went on at the same time is the only honest reason for the latter.
    """
    within = range(min(numbers), max(numbers) + 1) if numbers else range(0)
    shown = {record.sequence for record in extract.records}
    return {
        "records": len(extract.hashes),
        "in_full": len(extract.records),
        "withheld_within": len(set(within) - shown),
        "head": extract.hashes[-1] if extract.hashes else None,
    }


def _models(records: list[ChainRecord]) -> dict[str, list[str]]:
    """Returns the digests of the models that a site worked on, by round."""
    found: dict[str, set[str]] = {}
    for record in records:
        if {"round", "model"} <= set(record.body):
            found.setdefault(str(record.body["round"]), set()).add(str(record.body["model"]))
    return {round_: sorted(digests) for round_, digests in sorted(found.items())}


def _transcript(record: ChainRecord) -> dict[str, Any]:
    """Returns the hashes of what left in one reply, and the round and stage it belongs to."""
    body = record.body
    return {
        "record": record.hash,
        "round": body.get("round"),
        "specification": body.get("spec"),
        "stage": body.get("stage"),
        "items": {item["name"]: item["sha256"] for item in body["items"]},
    }
