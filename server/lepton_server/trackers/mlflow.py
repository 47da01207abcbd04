"""A run in MLflow: figures by round, settings as parameters, the model card as an artifact."""

import json
import logging
import os
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lepton_common.durable import write_atomic
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_server.progress import RoundReport
from lepton_server.trackers.tracker import figures

_STATUS = {"finished": "FINISHED", "failed": "FAILED"}
_MOST_PARAMETERS = 100  # that MLflow takes at a time
_LONGEST = 500  # characters of a parameter, in older databases
_SECONDS = "round_seconds"  # in every round
# How long a server may take, so that the end of a run is not held up for minutes.
_WAIT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def import_mlflow() -> None:
    """Imports MLflow and what it imports, before the run has threads.

    With Polars half imported in another thread, scikit-learn fails, which looks for its tables.
    """
    # MLflow would tell its makers that and how it is used.
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    for variable, value in _WAIT.items():
        os.environ.setdefault(variable, value)
    # MLflow's use of SQLAlchemy, which is not ours to mend.
    warnings.filterwarnings("ignore", module=r"mlflow\.|sqlalchemy\.|alembic\.")
    import mlflow.tracking  # noqa: F401

    for noisy in ("mlflow", "alembic"):  # whose levels the import has set
        logging.getLogger(noisy).setLevel(logging.WARNING)


class MlflowWriter:
    """Writes one run to an MLflow server or to a database file."""

    def __init__(self, settings: Settings, store: Path, own: Path, name: str) -> None:
        """Creates MLflow's run, or goes on with the one that ``own`` names.

        Args:
            settings: the whole configuration.
            store: folder of the database file, where no ``uri`` is set.
            own: file that names MLflow's run, for when the run goes on.
            name: of the run.
        """
        from mlflow.tracking import MlflowClient

        uri, place = settings.tracker.uri, None
        if uri is None:
            uri, place = f"sqlite:///{store / 'mlflow.db'}", (store / "mlflow").as_uri()
        self._client = MlflowClient(tracking_uri=uri)
        known: dict[str, str] = json.loads(own.read_text()) if own.exists() else {}
        self._run = known["run"] if known.get("uri") == uri else ""
        if self._run:
            self._client.update_run(self._run, status="RUNNING")
            return
        experiment = self._experiment(settings.tracker.experiment, place)
        self._run = self._client.create_run(experiment, run_name=name).info.run_id
        write_atomic(own, json.dumps({"uri": uri, "run": self._run}).encode())
        self._set_parameters(settings)

    def logged(self) -> set[int]:
        """Returns the rounds that MLflow has."""
        return {point.step for point in self._client.get_metric_history(self._run, _SECONDS)}

    def write(self, report: RoundReport) -> None:
        """Writes a round's figures in one go."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [
            Metric(name, value, now, report.round) for name, value in figures(report).items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: str, documents: Sequence[Path]) -> None:
        """Keeps the documents' text and notes how the run ended."""
        for path in documents:
            self._client.log_text(self._run, path.read_text(encoding="utf-8"), path.name)
        self._client.set_tag(self._run, "lepton.status", status)
        self._client.set_terminated(self._run, _STATUS.get(status, "KILLED"))

    def _experiment(self, name: str, place: str | None) -> str:
        """Returns the experiment's id; another run may create it at the same time."""
        from mlflow.exceptions import MlflowException

        found = self._client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self._client.create_experiment(name, artifact_location=place))
            except MlflowException:
                found = self._client.get_experiment_by_name(name)
                if found is None:
                    raise
        return str(found.experiment_id)

    def _set_parameters(self, settings: Settings) -> None:
        from mlflow.entities import Param

        values = list(_flat(json.loads(to_json(settings))))
        parameters = [Param(name, value[:_LONGEST]) for name, value in values]
        for first in range(0, len(parameters), _MOST_PARAMETERS):
            some = parameters[first : first + _MOST_PARAMETERS]
            self._client.log_batch(self._run, params=some)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)
