"""A run on disk: its settings, metrics, model and evidence, read from the run folder."""

import json
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import nn

from lepton_cli.apps.record import FILE as APP_FILE
from lepton_cli.apps.record import AppRun
from lepton_cli.evidence import Evidence, gather_evidence
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import OutsideTheDoor, RunNotFound, RunNotResumable
from lepton_common.models.catalog import build_model
from lepton_common.settings import Settings
from lepton_common.settings_rules import parse_settings
from lepton_common.tasks.catalog import find_task
from lepton_common.tasks.headlines import Headline
from lepton_server.progress import RoundReport
from lepton_server.run_folder import RunFolder

_CONFIG = "config.yaml"
_PLACES = ("*", "sweep-*/*")


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where everything of it lies.
    """

    folder: RunFolder

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.path.name

    @cached_property
    def settings(self) -> Settings:
        """The whole configuration."""
        return parse_settings(yaml.safe_load(self.folder.config.read_text(encoding="utf-8")))

    @cached_property
    def rounds(self) -> list[RoundReport]:
        """The finished rounds."""
        return list(self.folder.reports())

    @property
    def metrics(self) -> dict[str, float]:
        """Figures of the last round's model on the server's test set."""
        return dict(self.rounds[-1].metrics) if self.rounds else {}

    @property
    def status(self) -> str:
        """``finished``, ``stopped``, ``failed``, or ``interrupted`` (killed, or still running)."""
        return str(self.outcome.get("status", "interrupted"))

    @property
    def headline(self) -> Headline:
        """The figure that its models are compared by."""
        return find_task(self.settings.task).headline

    @property
    def curve(self) -> list[float]:
        """That figure, round by round."""
        return [report.metrics[self.headline.name] for report in self.rounds]

    @property
    def reached(self) -> float:
        """That figure of the last round's model."""
        return self.metrics[self.headline.name]

    @property
    def outcome(self) -> dict[str, Any]:
        """How the run ended; empty while it runs or after a kill."""
        path = self.folder.outcome
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def baselines(self) -> dict[str, Any]:
        """The headline of the models trained beside for comparison; empty without them."""
        path = self.folder.path / "baselines.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @cached_property
    def evidence(self) -> Evidence:
        """What the audit logs prove: bytes that left, protections, epsilon spent.

        Raises:
            AuditError: a log does not verify.
        """
        return gather_evidence(self.folder)

    @property
    def report(self) -> Path:
        """The report, a single HTML file that opens offline."""
        return self.folder.path / "report.html"

    def model(self) -> nn.Module:
        """Returns the last round's model, ready for prediction."""
        task = find_task(self.settings.task)
        data = self.settings.data
        dataset = load_dataset(task.dataset, data.root, data.prepare)
        outputs = task.outputs(dataset.classes, dataset.input_shape)
        model = build_model(self.settings.model, dataset.input_shape, outputs)
        # What is frozen comes with the model's name and never travels, so no file holds it.
        frozen = {n: p for n, p in model.named_parameters() if not p.requires_grad}
        model.load_state_dict({**frozen, **load_file(self.folder.final_model)})
        return model.eval()


def find_run(name: str, runs: str = "runs") -> Run:
    """Returns a run by its path, its name or how that begins; ``last`` is the newest.

    Raises:
        OutsideTheDoor: it is a third-party app's.
        RunNotFound: there is none.
    """
    found = find_any(name, runs)
    if isinstance(found, AppRun):
        raise OutsideTheDoor(
            f"The run {found.name} was a third-party app's, outside the door: it has no logs, no "
            f"settings and no rounds of ours. See: lepton report {found.path}"
        )
    return found


def find_any(name: str, runs: str = "runs") -> Run | AppRun:
    """Returns a run of either kind; as `find_run`.

    Raises:
        RunNotFound: there is none.
    """
    if name == "last":
        found = list_runs(runs)
        if not found:
            raise RunNotFound(f"There is no run in '{runs}'; start one with 'lepton simulate'.")
        return found[-1]
    for path in (Path(name), Path(runs) / name):
        for file in (_CONFIG, APP_FILE):
            if name and (path / file).is_file():
                return _run_of(path / file)
    known = list_runs(runs)
    begun = [run for run in known if run.name == name]
    begun = begun or [run for run in known if name and run.name.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    raise RunNotFound(f"No run '{name}' here or in '{runs}'; 'lepton runs' lists them.")


def list_runs(runs: str = "runs") -> list[Run | AppRun]:
    """Returns all runs in a folder and in the sweeps there, oldest first."""
    forms = (f"{place}/{file}" for place in _PLACES for file in (_CONFIG, APP_FILE))
    files = [path for form in forms for path in Path(runs).glob(form)]
    return [_run_of(path) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]


def stamp() -> str:
    """Returns the time as names of run folders have it."""
    return time.strftime("%Y%m%d-%H%M%S")


def new_folder(wanted: Path) -> Path:
    """Makes an empty folder of that name, or with a number behind it where there is one already.

    Raises:
        RunNotResumable: all names are taken.
    """
    for suffix in ("", *(f"-{index}" for index in range(2, 1000))):
        path = wanted.with_name(wanted.name + suffix)
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise RunNotResumable(f"Cannot find a free name for a run like {wanted}.")


def _run_of(file: Path) -> Run | AppRun:
    folder = file.parent.resolve()
    return AppRun(folder) if file.name == APP_FILE else Run(RunFolder(folder))
