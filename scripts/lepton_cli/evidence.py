"""What a run's audit logs prove, after verifying every one of them."""

import heapq
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from lepton_cli.hosted_evidence import hosted_evidence
from lepton_cli.packs.extract import charged_to, of_run
from lepton_cli.site_evidence import SiteEvidence, Totals, site_evidence
from lepton_client.site import AUDIT_FILE, LEDGER_FILE
from lepton_common.arrays import digest_of
from lepton_common.audit import read_records
from lepton_common.chain import GENESIS, ChainRecord, verify_heads
from lepton_common.errors import AuditError, LedgerInvalid
from lepton_common.hosting import HOST
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.settings_rules import parse_settings
from lepton_common.strict import to_json
from lepton_server.run_folder import RunFolder

_MOST_KEPT = 1000


@dataclass(frozen=True)
class Evidence:
    """What all logs of a run prove.

    Attributes:
        sites: by name; of more than a thousand, those that spent most or sent most.
        totals: what all sites came to.
        server_records: records in the server's log.
        witnessed: heads of site logs that the server's log names, all found.
        head: newest hash of the server's log; whoever notes it can tell later if it was cut.
    """

    sites: dict[str, SiteEvidence]
    totals: Totals
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

    Sites are looked at one after another, so memory does not depend on how many took part.

    Raises:
        AuditError: naming the log or file and the first thing wrong.
    """
    totals, kept = Totals(), list[tuple[float, int, str, SiteEvidence]]()
    with closing(_Witness(folder.audit)) as server:
        _check_files(folder, server)
        for found in _hosted(folder, server) if folder.host.exists() else _apart(folder, server):
            totals.add(found)
            entry = (found.epsilon or 0.0, found.total_bytes, found.name, found)
            (heapq.heappush if len(kept) < _MOST_KEPT else heapq.heappushpop)(kept, entry)
        sites = {site: found for _, _, site, found in sorted(kept, key=lambda entry: entry[2])}
        return Evidence(sites, totals, server.records, server.witnessed, server.head)


def _apart(folder: RunFolder, server: "_Witness") -> Iterator[SiteEvidence]:
    """Yields what is proven of each site that has logs of its own."""
    for site, key in server.sites():
        yield _verified(folder.site(site), site, key, server)
    for path in (folder.path / "sites").glob(f"*/{AUDIT_FILE}"):
        if not server.knows(path.parent.name) and _answered(path, server.run):
            raise AuditError(f"{path}: the server's log does not know this site: it was cut.")


def _hosted(folder: RunFolder, server: "_Witness") -> Iterable[SiteEvidence]:
    """Returns what is proven of each site of a host, which has one log for all of them."""
    keys = dict(server.sites())
    if set(keys) != {HOST}:
        raise AuditError(f"{folder.audit}: the server's log does not know the host: it was cut.")
    for path in (folder.path / "sites").glob("*"):
        raise AuditError(f"{path}: the sites of this run have a host, and no folders of their own.")
    return hosted_evidence(folder.host, keys[HOST], server.heads())


def _verified(folder: Path, site: str, key: str, server: "_Witness") -> SiteEvidence:
    path = folder / AUDIT_FILE
    records = list(read_records(path, expected_key=key))
    verify_heads(path, records, server.heads_of(site, ledger=False))
    ledger = _read_ledger(folder / LEDGER_FILE, key, server.heads_of(site, ledger=True))
    ours, charged = of_run(records, server.run), charged_to(ledger, server.run)
    found = site_evidence(
        site,
        [record for record in records if record.sequence in ours],
        [entry for entry in ledger if entry.sequence in charged],
    )
    return replace(found, records=len(records))


def _answered(path: Path, run: str) -> bool:
    """Tells whether a site's log is of a run too; an evaluation asks the sites of another."""
    return bool(of_run(list(read_records(path)), run))


class _Witness:
    """The server's log, read once: what it says of the run here, what of the sites in a table.

    The table is SQLite's own temporary file, in memory as far as its cache goes.

    Attributes:
        run: name of the run.
        config: digest of the configuration that the run began with.
        rounds: what the log says of each finished round, by number.
        statistics: digest of the statistics that were released; None: none were.
        evaluated: digest of the model whose figures they are; None: they are of records.
        records: how many there are.
        witnessed: heads of site logs that it names.
        head: its newest hash.
    """

    def __init__(self, path: Path) -> None:
        self.run = ""
        self.config: str | None = None
        self.statistics: str | None = None
        self.evaluated: str | None = None
        self.rounds: dict[int, dict[str, Any]] = {}
        self.records = self.witnessed = 0
        self.head = GENESIS
        self._table = sqlite3.connect("", isolation_level=None)
        try:
            self._table.executescript(
                "CREATE TABLE keys (site TEXT PRIMARY KEY, key TEXT) WITHOUT ROWID;"
                "CREATE TABLE heads (site TEXT, ledger INTEGER, head TEXT);"
            )
            self._table.execute("BEGIN")
            for record in read_records(path):
                self._take(record, path)
            self._table.execute("CREATE INDEX by_site ON heads (site, ledger)")
            self._table.execute("COMMIT")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Lets go of the table."""
        self._table.close()

    def sites(self) -> Iterator[tuple[str, str]]:
        """Yields each site that introduced itself, by name, and its key."""
        yield from self._table.execute("SELECT site, key FROM keys ORDER BY site")

    def knows(self, site: str) -> bool:
        """Tells whether a site introduced itself."""
        found = self._table.execute("SELECT 1 FROM keys WHERE site = ?", (site,))
        return found.fetchone() is not None

    def heads(self) -> list[str]:
        """Returns all heads that the server has seen of anybody's logs."""
        return [head for (head,) in self._table.execute("SELECT head FROM heads")]

    def heads_of(self, site: str, *, ledger: bool) -> list[str]:
        """Returns the heads of a site's audit log, or of its ledger, that the server has seen."""
        query = "SELECT head FROM heads WHERE site = ? AND ledger = ?"
        return [head for (head,) in self._table.execute(query, (site, ledger))]

    def _take(self, record: ChainRecord, path: Path) -> None:
        self.records, self.head, body = self.records + 1, record.hash, record.body
        if record.kind == "run" and self.config is None:
            self.run, self.config = body["run"], body["config"]
        if record.kind == "round":
            # A round repeated after a crash is in the log twice; the last one counts.
            self.rounds[body["round"]] = body
        if record.kind == "statistics":
            self.statistics, self.evaluated = body["file"], body.get("model_file")
        if record.kind == "introduced":
            for site, key in body["keys"].items():
                self._table.execute("INSERT OR IGNORE INTO keys VALUES (?, ?)", (site, key))
                known = self._table.execute("SELECT key FROM keys WHERE site = ?", (site,))
                if known.fetchone() != (key,):
                    raise AuditError(f"{path}: the site {site} changed its key in mid-run.")
        for ledger, name in enumerate(("heads", "ledgers")):
            seen = body.get(name, {}).items()
            rows = ((site, ledger, head) for site, head in seen)
            self._table.executemany("INSERT INTO heads VALUES (?, ?, ?)", rows)
        self.witnessed += len(body.get("heads", {}))


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


def _check_files(folder: RunFolder, server: _Witness) -> None:
    """Holds configuration, metrics and models against the server's log."""
    settings = parse_settings(yaml.safe_load(folder.config.read_text(encoding="utf-8")))
    if server.config != digest_of(to_json(settings).encode()):
        raise AuditError(f"{folder.config} is not the configuration that the run began with.")
    rounds = server.rounds
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
    _check_statistics(folder, server)
    if folder.final_model.exists() and not reports:
        raise AuditError(f"{folder.metrics_jsonl} is gone, and there is a model.")


def _check_statistics(folder: RunFolder, server: _Witness) -> None:
    path = folder.statistics
    found = digest_of(path.read_bytes()) if path.exists() else None
    if found != server.statistics:
        raise AuditError(f"{path} is not what the server's log says was told from the sites' sum.")
    path = folder.evaluated
    if server.evaluated and not (
        path.exists() and digest_of(path.read_bytes()) == server.evaluated
    ):
        raise AuditError(f"{path} is not the model that the server's log says was evaluated.")
