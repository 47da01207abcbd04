"""What the log of a host of simulated sites proves about each of them, after verifying it."""

from pathlib import Path
from typing import Any

from lepton_cli.site_evidence import SiteEvidence
from lepton_client.hosted.leaves import LEAVES, read_leaves
from lepton_client.site import AUDIT_FILE
from lepton_common.audit import read_records
from lepton_common.chain import ChainRecord, verify_heads
from lepton_common.errors import AuditError
from lepton_common.privacy.events import Event, read_event


def hosted_evidence(folder: Path, key: str, heads: list[str]) -> list[SiteEvidence]:
    """Verifies a host's log, and what it names; returns what is proven of each of its sites.

    Args:
        folder: the host's.
        key: hexadecimal public key that it introduced itself with.
        heads: of its log, as the server has seen them.

    Raises:
        AuditError: naming the file and the first thing wrong.
    """
    path = folder / AUDIT_FILE
    records = list(read_records(path, expected_key=key))
    verify_heads(path, records, heads)
    sites: dict[str, SiteEvidence] = {}
    engines: dict[str, float | None] = {}
    charges: dict[str, tuple[Event, frozenset[str]]] = {}
    for record in records:
        if record.kind == "charge":
            event, names = read_event(record.body["event"]), record.body["sites"]
            charges[record.hash] = event, frozenset(names)
            for name in names:
                _charge(sites.setdefault(name, SiteEvidence(name)), record.body, event)
        elif record.kind == "releases":
            covering = charges.pop(str(record.body["charge"]), None)
            _release(folder, record, covering, sites)
        elif record.kind == "engine":
            engines[str(record.body["engine"])] = record.body["difference"]
    for site in sites.values():
        site.engines |= engines
    return [site for _, site in sorted(sites.items())]


def _charge(site: SiteEvidence, body: dict[str, Any], event: Event) -> None:
    site.records += 1
    site.events.append(event)
    site.deltas.add(float(body["delta"]))
    site.units.add(str(body["unit"]))


def _release(
    folder: Path,
    record: ChainRecord,
    covering: tuple[Event, frozenset[str]] | None,
    sites: dict[str, SiteEvidence],
) -> None:
    body, where = record.body, f"{folder / AUDIT_FILE}: record {record.sequence}"
    proof, size = body["provenance"], sum(body["bytes"].values())
    event = None if isinstance(proof, str) else read_event(proof["dp"])
    if body["charge"] is not None and covering is None:
        raise AuditError(f"{where} was released without a charge.")
    if event is not None and (covering is None or event != covering[0]):
        raise AuditError(f"{where} was released under another event than the one charged.")
    for name, error in body["failed"].items():
        refusals = sites.setdefault(name, SiteEvidence(name)).refusals
        refusals[error] = refusals.get(error, 0) + 1
    if body["leaves"] is None:
        return
    protection, seen = proof if isinstance(proof, str) else "dp", set[str]()
    for name, *_ in read_leaves(folder / LEAVES, body["leaves"]):
        if name in seen or (covering is not None and name not in covering[1]):
            raise AuditError(f"{where} released something of {name} without a charge.")
        seen.add(name)
        site = sites.setdefault(name, SiteEvidence(name))
        site.records += 1
        site.releases += 1
        site.bytes_left[protection] = site.bytes_left.get(protection, 0) + size
