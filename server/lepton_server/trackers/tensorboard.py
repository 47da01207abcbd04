"""TensorBoard's event files of a run."""

import json
from collections.abc import Sequence
from pathlib import Path

from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_server.progress import RoundReport
from lepton_server.trackers.tracker import figures

_SETTINGS = "settings"
_SECONDS = "round_seconds"  # in every round


class TensorBoardWriter:
    """Writes a run's figures as scalars, a step a round, and its settings as text."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        """Opens another event file in a folder."""
        from torch.utils.tensorboard import SummaryWriter

        self._folder = folder
        self._logged = rounds_in(folder) if folder.is_dir() else set()
        self._writer = SummaryWriter(str(folder))
        if not self._logged:
            text = json.dumps(json.loads(to_json(settings)), indent=2)
            indented = "".join(f"    {line}\n" for line in text.splitlines())
            self._writer.add_text(_SETTINGS, indented, 0)

    def logged(self) -> set[int]:
        """Returns the rounds that earlier event files hold."""
        return set(self._logged)

    def write(self, report: RoundReport) -> None:
        """Writes a round's figures."""
        for name, value in figures(report).items():
            # The seconds come last: a round that has them is whole.
            if name != _SECONDS:
                self._writer.add_scalar(name, value, report.round)
        self._writer.add_scalar(_SECONDS, report.seconds, report.round)
        self._writer.flush()

    def end(self, status: str, documents: Sequence[Path]) -> None:
        """Closes the file; TensorBoard has no place for a status or a document."""
        self._writer.close()


def rounds_in(folder: Path) -> set[int]:
    """Returns the rounds that a folder's event files hold whole."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return {
        int(event.step)
        for path in sorted(folder.glob("events.out.tfevents.*"))
        for event in EventFileLoader(str(path)).Load()
        for value in event.summary.value
        if value.tag == _SECONDS
    }
