"""A run on disk: its settings, metrics, model and evidence, read from the run folder."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import nn

from lepton_cli.evidence import Evidence, gather_evidence
from lepton_common.datasets.catalog import load_dataset
from lepton_common.errors import RunNotFound
from lepton_common.models.catalog import build_model
from lepton_common.settings import Settings, parse_settings
from lepton_common.tasks.catalog import find_task
from lepton_server.progress import RoundReport
from lepton_server.run_folder import RunFolder

_RUNS = ("*/config.yaml", "sweep-*/*/config.yaml")


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
    def outcome(self) -> dict[str, Any]:
        """How the run ended; empty while it runs or after a kill."""
        path = self.folder.outcome
        return dict(json.loads(path.read_text())) if path.exists() else {}

    @property
    def baselines(self) -> dict[str, Any]:
        """Accuracies of the models trained beside for comparison; empty without them."""
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
        outputs = task.outputs(dataset.classes)
        model = build_model(self.settings.model, dataset.input_shape, outputs)
        model.load_state_dict(load_file(self.folder.final_model))
        return model.eval()


def find_run(name: str, runs: str = "runs") -> Run:
    """Returns a run by its path, its name or how that begins; ``last`` is the newest.

    Raises:
        RunNotFound: there is none.
    """
    if name == "last":
        found = list_runs(runs)
        if not found:
            raise RunNotFound(f"There is no run in '{runs}'; start one with 'lepton simulate'.")
        return found[-1]
    for path in (Path(name), Path(runs) / name):
        if (path / "config.yaml").is_file():
            return Run(RunFolder(path.resolve()))
    known = list_runs(runs)
    begun = [run for run in known if run.name == name]
    begun = begun or [run for run in known if name and run.name.startswith(name)]
    if len(begun) == 1:
        return begun[0]
    raise RunNotFound(f"No run '{name}' here or in '{runs}'; 'lepton runs' lists them.")


def list_runs(runs: str = "runs") -> list[Run]:
    """Returns all runs in a folder and in the sweeps there, oldest first."""
    found = (path for form in _RUNS for path in Path(runs).glob(form))
    configs = sorted(found, key=lambda path: path.stat().st_mtime_ns)
    return [Run(RunFolder(config.parent.resolve())) for config in configs]
