"""Progress while a run goes on: a bar on a terminal, plain lines elsewhere."""

import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Self

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from lepton_cli.pace import Pace
from lepton_cli.summary import upper
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import find_task
from lepton_server.progress import Observer, RoundReport

_DRAWN_A_SECOND = 5  # each drawing costs the run a millisecond or two
_STEPS = {
    "introduce": "introduced",
    "commit": "drawing groups",
    "reveal": "drawing groups",
    "advertise": "sending keys",
    "share": "sharing keys",
    "train": "trained",
    "mask": "trained",
    "sign": "agreed",
    "unmask": "unmasked",
}


class LiveObserver(Observer):
    """Shows rounds as they finish, and answers as they come; as a context, it closes it all."""

    def __init__(self, settings: Settings, *, quiet: bool, bar: bool) -> None:
        super().__init__()
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        self._target = settings.privacy.epsilon
        self._headline = find_task(settings.task).headline.name
        self._pace, self._bar, self._last = Pace(settings), bar, ""
        self._status = self._console.status("")
        self._progress = _Bar(
            self._pace, self._now, console=self._console, disable=quiet or not bar
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: types.TracebackType | None,
    ) -> None:
        self._status.stop()
        self._progress.stop()

    def say(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text, soft_wrap=not self._bar)

    def on_baseline(self, came: int, of: int) -> None:
        """Shows how far the models are that it will be compared with."""
        text = f"Baselines: {came} of {of} models trained."
        if self._bar and came < of:
            self._status.update(text)
            self._status.start()
        else:
            self._status.stop()
            if self._bar or came * 10 // of > (came - 1) * 10 // of:  # each tenth
                self.say(text)

    def on_start(self, first_round: int, rounds: int, sites: int) -> None:
        """Announces the run."""
        self._status.stop()
        more = f" from round {first_round}" if first_round > 1 else ""
        self.say(f"Training {rounds} rounds over {sites:,} sites{more}.")
        self._pace.start(first_round, rounds)
        self._progress.begin(rounds)

    def on_cohort(self, round_: int, sizes: Sequence[int]) -> None:
        """Notes what a round is about to train on."""
        self._pace.cohort(sizes)

    def on_answer(self, step: str, came: int, asked: int) -> None:
        """Notes an answer, which the next drawing shows."""
        self._pace.answer(step, came, asked)

    def on_round(self, report: RoundReport) -> None:
        """Shows a round's figures and names the sites that failed."""
        asked = self._pace.asked
        self._pace.finish(report.round, asked - len(report.failed))
        self._last = f"{self._headline} {report.metrics[self._headline]:.3f}"
        if report.epsilon:
            of = f" of {self._target:g}" if self._target else ""
            self._last += f"  epsilon {upper(max(report.epsilon.values()), 2)}{of}"
        if not self._bar:
            answered = f"{asked - len(report.failed)} of {asked} sites"
            left = _clock(self._pace.left_s) if report.round < report.rounds else ""
            parts = (self._last, answered, self._speed(), f"{report.seconds:.1f} s", left)
            said = "  ".join(part for part in parts if part)
            self.say(f"round {report.round}/{report.rounds}  {said}")
        if report.failed:
            named = ", ".join(f"{site} ({error})" for site, error in report.failed.items())
            self.say(f"[yellow]Round {report.round}: no answer of use from {escape(named)}[/]")

    def _now(self) -> str:
        """Returns the line of figures under the bar."""
        pace = self._pace
        step = f"{_STEPS[pace.step]} {pace.came}/{pace.asked}" if pace.step in _STEPS else ""
        return "  ".join(part for part in (self._last, self._speed(), step) if part)

    def _speed(self) -> str:
        speed = self._pace.records_per_s
        return "" if speed is None else f"~{_short(speed)} records/s"


class _Bar(Progress):
    """A bar of rounds, and under it the figures of the moment, both read when they are drawn."""

    def __init__(
        self,
        pace: Pace,
        figures: Callable[[], str],
        *,
        console: Console,
        disable: bool,
    ) -> None:
        self._pace, self._figures = pace, figures
        super().__init__(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(),
            _Left(pace),
            console=console,
            disable=disable,
            refresh_per_second=_DRAWN_A_SECOND,
        )

    def begin(self, rounds: int) -> None:
        """Shows the bar from here on."""
        self.add_task("rounds", total=rounds, completed=int(self._pace.done))
        self.start()

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yields bar and figures."""
        for task in self.tasks:
            task.completed = self._pace.done
        yield from super().get_renderables()
        yield Padding(Text(self._figures(), style="dim"), (0, 0, 0, 2))


class _Left(ProgressColumn):
    """The time that the run will still take."""

    max_refresh = None

    def __init__(self, pace: Pace) -> None:
        super().__init__()
        self._pace = pace

    def render(self, task: Task) -> Text:
        """Returns it as text; empty while it is unknown."""
        over = task.total is not None and self._pace.done >= task.total
        return Text("" if over else _clock(self._pace.left_s), style="cyan")


def observer_for(settings: Settings, *, quiet: bool) -> LiveObserver:
    """Returns the observer that suits where the output goes."""
    return LiveObserver(settings, quiet=quiet, bar=sys.stderr.isatty())


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02} left"


def _short(number: float) -> str:
    for limit, unit in ((1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{number / limit:.3g}{unit}"
    return f"{number:.3g}"
