"""The coordinator's runs: what was submitted, what came of it, and which waits to go on."""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from lepton_common.durable import write_atomic
from lepton_common.errors import CheckpointUnreadable, RunNotFound
from lepton_common.proposal import study_in
from lepton_common.settings import Settings
from lepton_common.strict import Name, parse_json, record, to_json
from lepton_server.run_folder import RunFolder

_SUBMITTED, _STOP, _WAITING = "submitted.json", "stop", "waiting"


@record
class Submitted:
    """Who submitted a run, and what.

    Attributes:
        by: a person of the roster.
        settings: the whole configuration as JSON.
    """

    by: Name
    settings: str


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        name: its name.
        status: ``waiting`` for operators of sites, ``running``, or how it has ended: ``finished``,
            ``stopped`` or ``failed``.
        rounds: finished ones; the one of statistics has no report.
        of_rounds: all.
        by: who submitted it.
        error: name and sentence of what ended it, or "".
        metrics: of the last finished round, as JSON.
        missing: sites that gave it nothing, with the name of the error.
    """

    name: str
    status: str
    rounds: int
    of_rounds: int
    by: str
    error: str
    metrics: str
    missing: dict[str, str]


class Runs:
    """The folder of runs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(exist_ok=True)

    def add(self, settings: Settings, proposal: str, by: str, roster: str, root: str) -> str:
        """Keeps a run, on disk when this returns, and returns its name."""
        what = "statistics" if settings.statistics.asked else settings.privacy.mode
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{settings.task}-{what}"
        count = 1
        while (self.path / name).exists():
            count += 1
            name = f"{name.removesuffix(f'-{count - 1}')}-{count}"
        folder = RunFolder(self.path / name)
        folder.roster.parent.mkdir(parents=True)
        # The roster of a run is the one it began with.
        write_atomic(folder.roster, roster.encode())
        write_atomic(folder.roster_root, root.encode())
        write_atomic(folder.proposal, proposal.encode())
        submitted = Submitted(by=by, settings=to_json(settings))
        write_atomic(folder.path / _SUBMITTED, to_json(submitted).encode())
        return name

    def names(self) -> list[str]:
        """Returns the names of all runs, oldest first."""
        return sorted(path.parent.name for path in self.path.glob(f"*/{_SUBMITTED}"))

    def unfinished(self) -> list[str]:
        """Returns the runs that have not ended, oldest first: they go on, whatever crashed."""
        return [name for name in self.names() if not self.folder(name).outcome.exists()]

    def folder(self, name: str) -> RunFolder:
        """Returns a run's folder.

        Raises:
            RunNotFound: there is none.
        """
        if "/" in name or not (self.path / name / _SUBMITTED).is_file():
            raise no_run(name)
        return RunFolder(self.path / name)

    def submitted(self, name: str) -> Submitted:
        """Returns what was submitted.

        Raises:
            RunNotFound: there is no such run.
            CheckpointUnreadable: its file is damaged.
        """
        path = self.folder(name).path / _SUBMITTED
        try:
            return parse_json(Submitted, path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointUnreadable(f"{path} is {error}; submit the run again.") from None

    def study_of(self, name: str) -> str | None:
        """Returns the study that a run is part of; None where it is of none.

        Raises:
            RunNotFound: there is no such run.
            ProposalInvalid: its proposal is damaged.
        """
        try:
            return study_in(self.folder(name).proposal.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise no_run(name) from error

    def stop(self, name: str) -> None:
        """Asks a run to end after its current round."""
        (self.folder(name).path / _STOP).touch()

    def stop_requested(self, name: str) -> bool:
        """Says whether someone has asked for that."""
        return (self.folder(name).path / _STOP).exists()

    def wait(self, name: str, sites: int) -> None:
        """Notes for how many sites' operators a run waits; 0 for none."""
        path = self.folder(name).path / _WAITING
        if sites:
            write_atomic(path, str(sites).encode())
        else:
            path.unlink(missing_ok=True)

    def end(self, name: str, status: str, error: BaseException | None = None) -> None:
        """Puts on disk how a run ended."""
        facts: dict[str, str] = {"status": status}
        if error is not None:
            facts |= {"error": type(error).__name__, "message": str(error)}
        write_atomic(self.folder(name).outcome, json.dumps(facts).encode())

    def state(self, name: str) -> RunState:
        """Returns how a run stands."""
        folder, submitted = self.folder(name), self.submitted(name)
        settings: dict[str, Any] = json.loads(submitted.settings)
        reports = list(folder.reports())
        state = RunState(
            name=name,
            status="running",
            rounds=len(reports) or int(folder.statistics.exists()),
            of_rounds=int(settings["rounds"]),
            by=submitted.by,
            error="",
            metrics=json.dumps(reports[-1].metrics if reports else {}),
            missing=reports[-1].failed if reports else {},
        )
        if not folder.outcome.exists():
            waits = (folder.path / _WAITING).exists()
            return replace(state, status="waiting") if waits else state
        outcome = json.loads(folder.outcome.read_text(encoding="utf-8"))
        error = f"{outcome['error']}: {outcome['message']}" if "error" in outcome else ""
        return replace(state, status=outcome["status"], error=error)


def no_run(name: str) -> RunNotFound:
    """Returns the error about a run that is not there, for whoever asks."""
    return RunNotFound(f"There is no run '{name}'; 'lepton run list' tells them.")


def as_fields(state: RunState) -> dict[str, Any]:
    """Returns a state as keyword arguments of the wire's message."""
    return asdict(state)
