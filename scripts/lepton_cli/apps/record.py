"""The run of a third-party app on disk: what it ran as, what it said, and how it ended."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lepton_common.durable import write_atomic
from lepton_common.flower.strategy_results import Rounds
from lepton_server.engines.traffic import Exchange

FILE = "app.json"
STATEMENT = (
    "OUTSIDE THE DOOR: this was a third-party Flower app. Nobody's consent was asked, no ledger "
    "was charged, no privacy was enforced and no audit log was kept: nothing here is evidence."
)


@dataclass(frozen=True)
class AppRun:
    """One run of a third-party app.

    Attributes:
        path: its folder.
    """

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.path.name

    @property
    def about(self) -> dict[str, Any]:
        """What ran: the app, its config, nodes, engine, versions, machine, command."""
        return dict(json.loads((self.path / FILE).read_text(encoding="utf-8")))

    @property
    def status(self) -> str:
        """``finished``, ``stopped``, ``failed``, or ``interrupted`` (killed, or still running)."""
        return str(self.outcome.get("status", "interrupted"))

    @property
    def outcome(self) -> dict[str, Any]:
        """How the run ended; empty while it runs or after a kill."""
        return dict(self._read("outcome.json", {}))

    @property
    def exchanges(self) -> list[Exchange]:
        """The messages, by round and type; empty while it runs."""
        return [Exchange(**each) for each in self._read("messages.json", [])]

    @property
    def rounds(self) -> int:
        """The last round that a message named."""
        return max((each.round or 0 for each in self.exchanges), default=0)

    @property
    def results(self) -> list[dict[str, Rounds]]:
        """The metrics of each strategy's `Result`; see `watched_results`."""
        return [
            {
                kind: {int(number): metrics for number, metrics in rounds.items()}
                for kind, rounds in result.items()
            }
            for result in self._read("results.json", [])
        ]

    @property
    def log(self) -> Path:
        """All that the app and Flower printed."""
        return self.path / "log.txt"

    @property
    def report(self) -> Path:
        """The report, a single HTML file that opens offline."""
        return self.path / "report.html"

    def begin(self, about: dict[str, Any]) -> None:
        """Makes the folder a run."""
        self._write(FILE, about)

    def end(
        self, exchanges: list[Exchange], results: list[dict[str, Rounds]], outcome: dict[str, str]
    ) -> None:
        """Writes what the run came to; the outcome last."""
        self._write("messages.json", [asdict(each) for each in exchanges])
        self._write("results.json", results)
        self._write("outcome.json", outcome)

    def _write(self, name: str, value: object) -> None:
        write_atomic(self.path / name, json.dumps(value, indent=1).encode())

    def _read(self, name: str, missing: Any) -> Any:  # noqa: ANN401
        path = self.path / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else missing
