"""What a sweep shows while it goes on: a line for each run that ends, and bars on a terminal."""

import sys
import types
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn

from lepton_cli.summary import upper
from lepton_cli.sweep.folder import SweepFolder
from lepton_cli.sweep.results import Result

_DRAWN_A_SECOND = 2


class Board:
    """Shows how the runs of a sweep go; as a context, it closes what it shows."""

    def __init__(self, folder: SweepFolder, ended: int, *, quiet: bool) -> None:
        """Prepares it for a sweep of which some runs have ended earlier."""
        self._folder, self._knobs = folder, folder.knobs
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            console=self._console,
            disable=quiet or not sys.stderr.isatty(),
            refresh_per_second=_DRAWN_A_SECOND,
        )
        self._tasks: dict[int, TaskID] = {}
        self._ended = ended

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text, soft_wrap=True)

    def look(self, running: list[int]) -> None:
        """Brings the bars to where the runs are."""
        for number in running:
            if number not in self._tasks:
                name = escape(named(self._knobs[number]))
                self._tasks[number] = self._bars.add_task(name, total=None)
            total = self._folder.settings(number).rounds
            done = self._folder.rounds(number)
            self._bars.update(self._tasks[number], completed=done, total=total)

    def ended(self, number: int, result: Result) -> None:
        """Takes a run's bar away and shows what it came to."""
        if number in self._tasks:
            self._bars.remove_task(self._tasks.pop(number))
        self._ended += 1
        name = escape(named(result.knobs))
        if result.finished:
            epsilon = "" if result.epsilon is None else f"  epsilon {upper(result.epsilon, 2)}"
            what = f"{result.headline} {result.reached:.4f}{epsilon}  {result.seconds:.1f} s"
        else:
            faults = [] if result.fault == "Interrupted" else result.document.get("faults", [])
            what = f"[red]{result.fault}[/] {escape(' '.join(faults))}".rstrip()
        self.say(f"{self._ended}/{len(self._knobs)}  {name}  {what}")


def named(knobs: dict[str, str]) -> str:
    """Returns the varied settings of a run in one line."""
    return " ".join(f"{name}={value}" for name, value in knobs.items()) or "the run"
