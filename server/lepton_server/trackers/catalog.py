"""From a tracker's name to the tracker; a run without one has no observer more."""

from importlib.util import find_spec
from pathlib import Path

from lepton_common.errors import SettingsError, TrackerMissing
from lepton_common.settings import Settings, TrackerSettings
from lepton_server.progress import Observer
from lepton_server.run_folder import RunFolder
from lepton_server.trackers.mlflow import MlflowWriter, import_mlflow
from lepton_server.trackers.tensorboard import TensorBoardWriter
from lepton_server.trackers.tracker import Tracker


def check_tracker(tracker: TrackerSettings) -> None:
    """Finds out before a run starts whether its tracker can work here.

    Raises:
        TrackerMissing: its package is not installed.
    """
    if tracker.name != "none" and find_spec(tracker.name) is None:
        raise TrackerMissing(
            f"tracker={tracker.name} needs a package that is not installed here: "
            f"pip install 'lepton-fl[{tracker.name}]'."
        )


def check_submitted(tracker: TrackerSettings) -> None:
    """Checks the tracker of a run that somebody else submits to this machine.

    Raises:
        SettingsError: it names a place; a coordinator writes into the run's folder only.
        TrackerMissing: its package is not installed.
    """
    if tracker.folder is not None or tracker.uri is not None:
        raise SettingsError(
            "A coordinator keeps what trackers write in the run's own folder: drop tracker.folder "
            "and tracker.uri."
        )
    check_tracker(tracker)


def trackers_of(settings: Settings, folder: RunFolder, store: Path) -> list[Observer]:
    """Returns the observers that a run's settings ask for.

    Args:
        settings: the whole configuration.
        folder: the run's.
        store: folder of MLflow's database file, where the settings name no other place.
    """
    tracker, path = settings.tracker, folder.path
    match tracker.name:
        case "none":
            return []
        case "tensorboard":
            events = Path(tracker.folder) / path.name if tracker.folder else path / "tensorboard"
            return [Tracker("TensorBoard", folder, lambda: TensorBoardWriter(settings, events))]
        case "mlflow":
            import_mlflow()
            own = path / "mlflow.json"
            return [
                Tracker("MLflow", folder, lambda: MlflowWriter(settings, store, own, path.name))
            ]
