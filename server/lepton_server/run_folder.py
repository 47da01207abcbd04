"""The folder of one run: what is in it, by name."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lepton_common.durable import write_atomic
from lepton_common.errors import CheckpointUnreadable
from lepton_server.progress import RoundReport


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder, and its metrics.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The composed configuration."""
        return self.path / "config.yaml"

    @property
    def about(self) -> Path:
        """Versions, git hash, command, machine."""
        return self.path / "about.json"

    @property
    def outcome(self) -> Path:
        """How the run ended; not there while it runs."""
        return self.path / "outcome.json"

    @property
    def audit(self) -> Path:
        """The server's own audit log, which witnesses the sites' heads."""
        return self.path / "server" / "audit.jsonl"

    @property
    def server_key(self) -> Path:
        """The key that signs the server's audit log."""
        return self.path / "server" / "signing.pem"

    @property
    def roster(self) -> Path:
        """The federation's signed roster, as the sites have it too."""
        return self.path / "server" / "roster.json"

    @property
    def roster_root(self) -> Path:
        """The digest of the roster's first version."""
        return self.path / "server" / "roster.root"

    @property
    def proposal(self) -> Path:
        """The run as its lead proposed it, signed; not there in a simulation."""
        return self.path / "server" / "proposal.json"

    @property
    def sums(self) -> Path:
        """The journal of secure sums."""
        return self.path / "server" / "sums"

    @property
    def checkpoint(self) -> Path:
        """The last finished round."""
        return self.path / "checkpoint.safetensors"

    @property
    def final_model(self) -> Path:
        """The last round's model."""
        return self.path / "model.safetensors"

    @property
    def best_model(self) -> Path:
        """The model of the round with the best figure on the server's test set."""
        return self.path / "best_model.safetensors"

    @property
    def metrics_jsonl(self) -> Path:
        """One JSON line a round."""
        return self.path / "metrics.jsonl"

    @property
    def metrics_csv(self) -> Path:
        """The same, as a table."""
        return self.path / "metrics.csv"

    @property
    def statistics(self) -> Path:
        """What sites answered where statistics were asked, in place of a model."""
        return self.path / "statistics.json"

    @property
    def evaluated(self) -> Path:
        """The model that sites were asked to evaluate; there only where they were."""
        return self.path / "evaluated.safetensors"

    @property
    def host(self) -> Path:
        """The folder of the host of simulated sites that are trained together; there or not."""
        return self.path / "host"

    def site(self, name: str) -> Path:
        """The folder of a simulated site."""
        return self.path / "sites" / name

    def write_metrics(self, reports: list[dict[str, Any]]) -> None:
        """Writes all rounds' metrics, as JSON lines and as CSV.

        Both files are made anew from the checkpoint's history, so that they never hold a round
        that a crash undid.
        """
        lines = "".join(json.dumps(report) + "\n" for report in reports)
        write_atomic(self.metrics_jsonl, lines.encode())
        table = io.StringIO()
        names = ["round", *reports[0]["metrics"], "max_epsilon", "failed", "seconds"]
        writer = csv.DictWriter(table, names, lineterminator="\n")
        writer.writeheader()
        for report in reports:
            writer.writerow(
                {
                    "round": report["round"],
                    **report["metrics"],
                    "max_epsilon": max(report["epsilon"].values(), default=""),
                    "failed": len(report["failed"]),
                    "seconds": report["seconds"],
                }
            )
        write_atomic(self.metrics_csv, table.getvalue().encode())

    def reports(self) -> Iterator[RoundReport]:
        """Yields the finished rounds.

        Raises:
            CheckpointUnreadable: the metrics file is damaged.
        """
        try:
            text = self.metrics_jsonl.read_text() if self.metrics_jsonl.exists() else ""
            for line in text.splitlines():
                yield RoundReport(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise CheckpointUnreadable(f"{self.metrics_jsonl} is damaged; run again.") from error


def as_plain(report: RoundReport) -> dict[str, Any]:
    """Returns a round report as plain values."""
    return asdict(report)
