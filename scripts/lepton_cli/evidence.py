"""What a run's audit logs prove, after verifying every one of them."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from lepton_client.site import LEDGER_FILE
from lepton_common.arrays import digest_of
from lepton_common.audit import read_records
from lepton_common.chain import GENESIS, ChainRecord, verify_heads
from lepton_common.errors import AuditError, LedgerInvalid, PlanError
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import Event, RoundedSkellam, read_event
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.privacy.plan import SHARE_VARIANCE, SharedNoise
from lepton_common.settings import parse_settings
from lepton_common.strict import to_json
from lepton_server.run_folder import RunFolder


@dataclass
class SiteEvidence:
    """What one site's log proves.

    Attributes:
        name: the site's name.
        records: records in its log.
        bytes_left: bytes of everything that left, by protection; ``secagg+dp`` is both.
        releases: number of replies with content.
        refusals: error name -> how often.
        units: what was protected as one.
        engines: what computed private gradients, and how far it was from Opacus.
        deltas: the deltas charged at.
        events: every mechanism charged, released or not.
        shared: who shared the noise of the newest charge, where any did.
    """

    name: str
    records: int = 0
    bytes_left: dict[str, int] = field(default_factory=dict)
    releases: int = 0
    refusals: dict[str, int] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)
    engines: dict[str, float | None] = field(default_factory=dict)
    deltas: set[float] = field(default_factory=set)
    events: list[Event] = field(default_factory=list)
    shared: SharedNoise | None = None

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

    def epsilon_with(self, shares: int) -> float | None:
        """What is spent if so many sites' shares of noise are all that protects each sum."""
        if self.delta is None:
            return None
        events = (
            replace(event, variance=shares * SHARE_VARIANCE)
            if isinstance(event, RoundedSkellam)
            else event
            for event in self.events
        )
        return epsilon(tuple(events), self.delta)

    @property
    def without_dp(self) -> bool:
        """Whether anything left that was computed from records without differential privacy."""
        return any(self.bytes_left.get(kind, 0) > 0 for kind in ("unprotected", "secagg"))

    @property
    def readable(self) -> bool:
        """Whether the server could read anything of this site's alone, computed from records."""
        return any(self.bytes_left.get(kind, 0) > 0 for kind in ("unprotected", "dp"))


@dataclass(frozen=True)
class Evidence:
    """What all logs of a run prove.

    Attributes:
        sites: by name.
        server_records: records in the server's log.
        witnessed: heads of site logs that the server's log names, all found.
        head: newest hash of the server's log; whoever notes it can tell later if it was cut.
    """

    sites: dict[str, SiteEvidence]
    server_records: int
    witnessed: int
    head: str


def gather_evidence(folder: RunFolder) -> Evidence:
    """Verifies and reads all logs of a run, and holds the run's files against them.

    Each site's log must verify under the key that the site introduced itself with, hold every
    head that the server witnessed, and charge each private release before it. The server's log
    must name the configuration, every finished round with its metrics, and the models' digests.
    It cannot show that its own newest records are gone together with all files of those rounds:
    that takes someone who has noted its head.

    Raises:
        AuditError: naming the log or file and the first thing wrong.
    """
    server = list(read_records(folder.audit))
    _check_files(folder, server)
    keys: dict[str, str] = {}
    heads: dict[str, list[str]] = {}
    ledgers: dict[str, list[str]] = {}
    for record in server:
        if record.kind == "introduced":
            for site, key in record.body["keys"].items():
                if keys.setdefault(site, key) != key:
                    raise AuditError(f"{folder.audit}: the site {site} changed its key in mid-run.")
        for site, head in record.body.get("heads", {}).items():
            heads.setdefault(site, []).append(head)
        for site, head in record.body.get("ledgers", {}).items():
            ledgers.setdefault(site, []).append(head)
    sites = {}
    for site, key in sorted(keys.items()):
        path = folder.site(site) / "audit.jsonl"
        records = list(read_records(path, expected_key=key))
        verify_heads(path, records, heads.get(site, []))
        ledger = _read_ledger(folder.site(site) / LEDGER_FILE, key, ledgers.get(site, []))
        sites[site] = site_evidence(site, records, ledger)
    for path in sorted((folder.path / "sites").glob("*/audit.jsonl")):
        if path.parent.name not in sites:
            raise AuditError(f"{path}: the server's log does not know this site: it was cut.")
    return Evidence(sites, len(server), sum(map(len, heads.values())), server[-1].hash)


def _read_ledger(path: Path, key: str, witnessed: list[str]) -> list[ChainRecord]:
    """Returns the verified entries of a site's privacy ledger, none where nothing was private."""
    records: list[ChainRecord] = []
    try:
        if path.exists():
            records = read_ledger(path, key).records
    except LedgerInvalid as error:
        raise AuditError(str(error)) from error
    verify_heads(path, records, [head for head in witnessed if head != GENESIS])
    return records


def _check_files(folder: RunFolder, server: list[ChainRecord]) -> None:
    """Holds configuration, metrics and models against the server's log."""
    config = next((record.body["config"] for record in server if record.kind == "run"), None)
    settings = parse_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    if config != digest_of(to_json(settings).encode()):
        raise AuditError(f"{folder.config} is not the configuration that the run began with.")
    # A round repeated after a crash is in the log twice; the last one counts.
    rounds = {record.body["round"]: record.body for record in server if record.kind == "round"}
    reports = list(folder.reports())
    for report in reports:
        if report.round not in rounds:
            raise AuditError(f"{folder.audit}: round {report.round} is gone: the log was cut.")
        if report.metrics != rounds[report.round]["metrics"]:
            raise AuditError(
                f"{folder.metrics_jsonl}: the metrics of round {report.round} were altered."
            )
    digests = {body["model_file"] for body in rounds.values()}
    for path in (folder.final_model, folder.best_model):
        if path.exists() and digest_of(path.read_bytes()) not in digests:
            raise AuditError(f"{path} is not a model of a round in the server's log.")
    if folder.final_model.exists() and not reports:
        raise AuditError(f"{folder.metrics_jsonl} is gone, and there is a model.")


def _shared(site: str, charge: ChainRecord) -> SharedNoise | None:
    values = charge.body.get("shared")
    try:
        return None if values is None else SharedNoise(**values)
    except (TypeError, PlanError) as error:
        raise AuditError(
            f"{site}: charge {charge.sequence} does not say who shared noise."
        ) from error


def site_evidence(site: str, records: list[ChainRecord], ledger: list[ChainRecord]) -> SiteEvidence:
    """Returns what a site's records and its ledger's entries prove, already verified each.

    Raises:
        AuditError: something was released without the charge for it.
    """
    found = SiteEvidence(site, records=len(records))
    charges: dict[str, Event] = {}
    for record in ledger:
        if record.kind == "charge":
            charges[record.hash] = read_event(record.body["event"])
            found.events.append(charges[record.hash])
            found.deltas.add(float(record.body["delta"]))
            found.units.add(str(record.body["unit"]))
            found.shared = _shared(site, record) or found.shared
    for record in records:
        if record.kind == "engine":
            found.engines[str(record.body["engine"])] = record.body["difference"]
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
                event = None if isinstance(proof, str) else proof.get("dp")
                protection = proof if isinstance(proof, str) else "+".join(sorted(proof)[::-1])
                if event is not None and read_event(event) != covering:
                    raise AuditError(
                        f"{site}: record {record.sequence} released '{item['name']}' under another "
                        "event than the one charged."
                    )
                left = found.bytes_left.get(protection, 0)
                found.bytes_left[protection] = left + int(item["bytes"])
    return found
