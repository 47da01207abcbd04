"""What all trackers share: a thread of its own that writes rounds, and that may fail alone."""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from lepton_server.progress import Observer, RoundReport
from lepton_server.run_folder import RunFolder

_LOG = logging.getLogger("lepton.tracker")
_LAST_WORDS_S = 60.0  # for what is still unwritten when a run has ended


class Writer(Protocol):
    """Writes one run to where a tracker looks for it; any exception ends its work."""

    def logged(self) -> set[int]:
        """Returns the rounds that are there already: a resumed run goes on."""

    def write(self, report: RoundReport) -> None:
        """Writes a round's figures, to be seen at once."""

    def end(self, status: str, documents: Sequence[Path]) -> None:
        """Notes how the run ended, and keeps what was written about it."""


class Tracker(Observer):
    """Has a `Writer` write every finished round once, whatever crashed before.

    It does so in a thread of its own, so that a slow disk or a server that is gone neither slows
    the run down nor ends it: one line says so, and the run goes on untracked.
    """

    def __init__(self, name: str, folder: RunFolder, writer: Callable[[], Writer]) -> None:
        """Prepares it.

        Args:
            name: as the user knows it.
            folder: the run's, which holds the rounds that were finished earlier.
            writer: makes the writer, in the thread that uses it.
        """
        super().__init__()
        self._name, self._folder, self._make = name, folder, writer
        self._waiting: queue.SimpleQueue[RoundReport | tuple[str, Sequence[Path]]] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Begins with the rounds that are finished already."""
        for report in self._folder.reports():
            self._waiting.put(report)
        self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
        self._thread.start()

    def on_round(self, report: RoundReport) -> None:
        """Has the round written."""
        self._waiting.put(report)

    def on_end(self, status: str, documents: Sequence[Path]) -> None:
        """Waits until all is written, for a bounded time."""
        if self._thread is None:
            return
        self._waiting.put((status, tuple(documents)))
        self._thread.join(_LAST_WORDS_S)
        if self._thread.is_alive():
            _LOG.warning("%s has not taken all of the run's rounds in time.", self._name)

    def _work(self) -> None:
        try:
            writer = self._make()
            logged = writer.logged()
            while isinstance(item := self._waiting.get(), RoundReport):
                if item.round not in logged:
                    writer.write(item)
                    logged.add(item.round)
            writer.end(*item)
        except Exception as error:
            said = (str(error).splitlines() or [""])[0]
            _LOG.warning(
                "%s failed (%s: %s); the run goes on without it.",
                self._name,
                type(error).__name__,
                said,
            )


def figures(report: RoundReport) -> dict[str, float]:
    """Returns a round's figures by name: all of them released, none of a single site."""
    found = {**report.metrics, "failed_sites": len(report.failed), "round_seconds": report.seconds}
    if report.epsilon:
        found["epsilon"] = max(report.epsilon.values())
    return found
