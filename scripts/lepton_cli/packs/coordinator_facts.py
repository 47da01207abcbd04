"""What the coordinator's pack says of a run, computed from its log and configuration alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lepton_common.arrays import digest_of
from lepton_common.audit import AUDIT_DOMAIN
from lepton_common.chain import ChainRecord, read_chain
from lepton_common.errors import EvidenceContradicts
from lepton_common.identity.roster import Roster
from lepton_common.settings import Settings
from lepton_common.strict import parse_json

AUDIT, CONFIG = "audit.jsonl", "config.json"


def read_coordinator_records(
    where: Path, run: str, roster: Roster, members: Mapping[str, bytes]
) -> list[ChainRecord]:
    """Returns the coordinator's log of a run, verified and held against configuration and roster.

    The log has a key of the run's own, which the signature on the pack vouches for.

    Raises:
        AuditError: a record does not verify.
        EvidenceContradicts: it is of another run, another configuration, or of strangers.
    """
    lines = members[AUDIT].split(b"\n")[:-1]
    records = list(read_chain(lines, where / AUDIT, AUDIT_DOMAIN))
    began = next((record.body for record in records if record.kind == "run"), {})
    if began.get("run") != run:
        raise EvidenceContradicts(f"{where / AUDIT} is not the log of the run {run}.")
    if began["config"] != digest_of(members[CONFIG]):
        raise EvidenceContradicts(
            f"{where / CONFIG} is not the configuration that the run began with."
        )
    known = {member.name: member.public_key for member in roster.members}
    for site, key in _participants(records).items():
        if known.get(site) != key:
            raise EvidenceContradicts(
                f"{where / AUDIT}: the roster names no site {site} with the key it came with."
            )
    return records


def coordinator_facts(records: list[ChainRecord], config: bytes) -> dict[str, Any]:
    """Returns what the coordinator's pack says of a run.

    Raises:
        ValueError: the configuration is none.
    """
    settings = parse_json(Settings, config.decode())
    # A round repeated after a crash is in the log twice; the last one counts.
    collected = {r.body["round"]: r.body for r in records if r.kind == "collected"}
    finished = {r.body["round"]: r.body for r in records if r.kind == "round"}
    last = finished[max(finished)] if finished else None
    told: dict[str, Any] = {}
    if settings.statistics.asked:  # the one round of a query makes no model
        finished = {round_: {"metrics": {}, "model_file": None} for round_ in collected}
        newest = [r for r in records if r.kind in ("collected", "statistics")][-1:]
        told = {"statistics": next((r.body for r in newest if r.kind == "statistics"), {})}
    privacy = settings.privacy
    return {
        "times": [records[0].time, records[-1].time],
        "audit": {
            "records": len(records),
            "in_full": len(records),
            "withheld_within": 0,
            "head": records[-1].hash,
        },
        "task": settings.task,
        "model_kind": settings.model,
        "strategy": settings.strategy.name,
        "privacy": {"mode": privacy.mode, "epsilon": privacy.epsilon, "delta": privacy.delta},
        "secagg": {"mode": settings.secagg.mode, "colluders": settings.colluders},
        "participants": _participants(records),
        "of_rounds": settings.rounds,
        "rounds": [
            {
                "round": number,
                "specifications": collected[number]["secagg"] if number in collected else [],
                "model_before": collected[number]["model"] if number in collected else None,
                "answered": sorted(collected[number]["heads"]) if number in collected else [],
                "failed": collected[number]["failed"] if number in collected else {},
                "metrics": body["metrics"],
                "model_file": body["model_file"],
            }
            for number, body in sorted(finished.items())
        ],
        "model": None if last is None else {"round": last["round"], "sha256": last["model_file"]},
        "metrics": {} if last is None else last["metrics"],
        **told,
        "witnessed": sum(len(r.body.get("heads", {})) for r in records),
    }


def _participants(records: list[ChainRecord]) -> dict[str, str]:
    found: dict[str, str] = {}
    for record in records:
        if record.kind == "introduced":
            found |= record.body["keys"]
    return dict(sorted(found.items()))
