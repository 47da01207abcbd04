"""Progress while a run goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import types
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lepton_server.progress import Observer, RoundReport


class LiveObserver(Observer):
    """Shows rounds as they finish; as a context, it closes what it shows."""

    def __init__(self, *, quiet: bool, bar: bool) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._progress = Progress(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=quiet or not bar,
        )
        self._bar = bar
        self._task = self._progress.add_task("rounds", total=None, figures="")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text)

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Announces the run."""
        more = f" from round {first_round}" if first_round > 1 else ""
        self.say(f"Training {rounds} rounds over {sites:,} sites{more}.")
        self._progress.update(self._task, total=rounds, completed=first_round - 1)
        self._progress.start()

    def on_round(self, report: RoundReport) -> None:
        """Shows a round's figures and names the sites that failed."""
        spent = f"  epsilon {max(report.epsilon.values()):.2f}" if report.epsilon else ""
        figures = f"accuracy {report.metrics['accuracy']:.3f}{spent}"
        self._progress.update(self._task, completed=report.round, figures=figures)
        if not self._bar:
            self.say(f"round {report.round}/{report.rounds}  {figures}  {report.seconds:.1f} s")
        if report.failed:
            named = ", ".join(f"{site} ({error})" for site, error in report.failed.items())
            self.say(f"[yellow]Round {report.round}: no answer of use from {escape(named)}[/]")


def observer_for(*, quiet: bool) -> LiveObserver:
    """Returns the observer that suits where the output goes."""
    return LiveObserver(quiet=quiet, bar=sys.stderr.isatty())
