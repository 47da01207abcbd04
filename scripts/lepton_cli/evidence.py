"""What a run's audit logs prove, after verifying every one of them."""

from dataclasses import dataclass, field

from lepton_common.audit import AuditRecord, read_records, verify_heads
from lepton_common.errors import AuditError
from lepton_common.privacy.accounting import GaussianEvent, epsilon
from lepton_server.run_folder import RunFolder


@dataclass
class SiteEvidence:
    """What one site's log proves.

    Attributes:
        name: the site's name.
        records: records in its log.
        bytes_left: bytes of everything that left, by protection.
        releases: number of replies with content.
        refusals: error name -> how often.
        units: what was protected as one.
        deltas: the deltas charged at.
        events: every mechanism charged, released or not.
    """

    name: str
    records: int = 0
    bytes_left: dict[str, int] = field(default_factory=dict)
    releases: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    deltas: set[float] = field(default_factory=set)
    events: list[GaussianEvent] = field(default_factory=list)

    @property
    def total_bytes(self) -> int:
        """All bytes that left."""
        return sum(self.bytes_left.values())

    @property
    def delta(self) -> float | None:
        """The smallest delta charged at; None without DP."""
        return min(self.deltas, default=None)

    @property
    def epsilon(self) -> float | None:
        """Spent at `delta`, recomputed from the charged events; None without DP."""
        return None if self.delta is None else epsilon(tuple(self.events), self.delta)

    @property
    def unprotected(self) -> bool:
        """Whether anything left that was computed from records and not protected."""
        return self.bytes_left.get("unprotected", 0) > 0


@dataclass(frozen=True)
class Evidence:
    """What all logs of a run prove.

    Attributes:
        sites: by name.
        server_records: records in the server's log.
        witnessed: heads of site logs that the server's log names, all found.
    """

    sites: dict[str, SiteEvidence]
    server_records: int
    witnessed: int


def gather_evidence(folder: RunFolder) -> Evidence:
    """Verifies and reads all logs of a run.

    Each site's log must verify under the key that the site introduced itself with, hold every
    head that the server witnessed, and charge each private release before it; the server's own
    log must hold every finished round.

    Raises:
        AuditError: naming the log and the first thing wrong.
    """
    server = list(read_records(folder.audit))
    logged = {record.body["round"] for record in server if record.kind == "round"}
    for report in folder.reports():
        if report.round not in logged:
            raise AuditError(
                f"{folder.audit}: the finished round {report.round} is gone: the log was cut."
            )
    keys: dict[str, str] = {}
    heads: dict[str, list[str]] = {}
    for record in server:
        if record.kind == "introduced":
            for site, key in record.body["keys"].items():
                if keys.setdefault(site, key) != key:
                    raise AuditError(f"{folder.audit}: the site {site} changed its key in mid-run.")
        for site, head in record.body.get("heads", {}).items():
            heads.setdefault(site, []).append(head)
    sites = {}
    for site, key in sorted(keys.items()):
        path = folder.site(site) / "audit.jsonl"
        records = list(read_records(path, expected_key=key))
        verify_heads(path, records, heads.get(site, []))
        sites[site] = _site_evidence(site, records)
    return Evidence(sites, len(server), sum(map(len, heads.values())))


def _site_evidence(site: str, records: list[AuditRecord]) -> SiteEvidence:
    found = SiteEvidence(site, records=len(records))
    charges: dict[str, GaussianEvent] = {}
    for record in records:
        if record.kind == "charge":
            charges[record.hash] = GaussianEvent(**record.body["event"])
            found.events.append(charges[record.hash])
            found.deltas.add(float(record.body["delta"]))
            found.units.add(str(record.body["unit"]))
        elif record.kind == "refusal":
            error = str(record.body["error"])
            found.refusals[error] = found.refusals.get(error, 0) + 1
        elif record.kind == "release":
            found.releases += 1
            charge = record.body["charge"]
            if charge is not None and charge not in charges:
                raise AuditError(f"{site}: record {record.sequence} was released without a charge.")
            covering = charges.pop(charge, None)
            for item in record.body["items"]:
                proof = item["provenance"]
                protection = proof if isinstance(proof, str) else next(iter(proof))
                if protection == "dp" and GaussianEvent(**proof["dp"]) != covering:
                    raise AuditError(
                        f"{site}: record {record.sequence} released '{item['name']}' under another "
                        "event than the one charged."
                    )
                left = found.bytes_left.get(protection, 0)
                found.bytes_left[protection] = left + int(item["bytes"])
    return found
