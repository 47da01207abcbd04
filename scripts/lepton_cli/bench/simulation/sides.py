"""Takes turns: each side of a comparison is a process that runs one round when it is told to."""

import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_cli.bench.peer_jobs.turns import ANSWERED, ASKED, FOLDER, GO, STOP
from lepton_client.isolation import bound

_LOOK_S, _END_S = 0.5, 20.0


@dataclass(frozen=True)
class Side:
    """One side of a comparison, and how to start it.

    Attributes:
        name: stable name.
        command: of its process, which meets the benchmark by `peer_jobs.turns`.
        environment: what the process has beside this one's.
        steps: which each of its rounds must report, where it reports any; 0: whatever comes.
        start_s: longest wait for its first round, in seconds.
        turn_s: longest wait for each other round, in seconds.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    steps: int = 0
    start_s: float = 300.0
    turn_s: float = 120.0


@dataclass
class Outcome:
    """What became of a side.

    Attributes:
        seconds: wall time of each round but the first, which warms up.
        facts: what it measured itself, over all rounds.
        missing: why there is nothing; None where there is.
    """

    seconds: list[float] = field(default_factory=list)
    facts: dict[str, float] = field(default_factory=dict)
    missing: str | None = None

    @property
    def median_s(self) -> float:
        """Median of the rounds' times, in seconds."""
        return statistics.median(self.seconds)

    def times_faster_than(self, other: "Outcome") -> float:
        """Returns the median of the other's time over this one's, turn by turn."""
        pairs = zip(other.seconds, self.seconds, strict=True)
        return statistics.median(theirs / ours for theirs, ours in pairs)


class _Lost(Exception):
    """A side cannot go on."""


class _Running:
    """A side's process."""

    def __init__(self, side: Side, folder: Path) -> None:
        self._side, self._log = side, folder / "log"
        for pipe in (ASKED, ANSWERED):
            os.mkfifo(folder / pipe)
        # Open at both ends, so that nobody waits for the other one to open its own.
        self._asked = os.open(folder / ASKED, os.O_RDWR)
        self._answered = os.open(folder / ANSWERED, os.O_RDWR)
        self._rest, self._ended = b"", False
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603
                bound(list(side.command)),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(side, folder),
                start_new_session=True,
            )

    def ask(self, word: str) -> None:
        os.write(self._asked, word.encode())

    def answer(self, wait_s: float) -> dict[str, Any]:
        """Returns the next answer.

        Raises:
            _Lost: none comes, or it tells why there will be none, or of other work than was asked.
        """
        deadline = time.monotonic() + wait_s
        while b"\n" not in self._rest:
            if select.select([self._answered], [], [], _LOOK_S)[0]:
                self._rest += os.read(self._answered, 65536)
            elif self._process.poll() is not None:
                raise _Lost(f"it ended by itself: {self._last_words()}")
            elif time.monotonic() > deadline:
                raise _Lost(f"no round came within {wait_s:.0f} s: {self._last_words()}")
        line, self._rest = self._rest.split(b"\n", 1)
        answer: dict[str, Any] = json.loads(line)
        if answer["state"] == "skipped":
            raise _Lost(str(answer["why"]))
        steps = answer.get("steps", self._side.steps)
        if self._side.steps and steps != self._side.steps:
            raise _Lost(f"a round of it had {steps} steps and not {self._side.steps}")
        return answer

    def end(self) -> None:
        """Ends the process and all that it has started; once."""
        if self._ended:
            return
        self._ended = True
        for end, wait_s in ((signal.SIGTERM, _END_S), (signal.SIGKILL, None)):
            try:
                os.killpg(self._process.pid, end)
            except ProcessLookupError:
                break
            try:
                self._process.wait(wait_s)
            except subprocess.TimeoutExpired:
                continue
        os.close(self._asked)
        os.close(self._answered)

    def wait(self) -> None:
        """Waits a while for it to end by itself."""
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else "without a word"


def take_turns(
    sides: Sequence[Side], turns: int, budget_s: float = float("inf")
) -> dict[str, Outcome]:
    """Runs the sides' rounds by turns and returns what became of each, by name.

    Sides start one after another, each alone with the round that warms it up: some find out then
    how many threads are fastest. A side that is lost is left out, the others go on.

    Args:
        sides: any number.
        turns: rounds of each, after the one that warms up.
        budget_s: no further turn begins when so much time is spent, one at least.
    """
    found = {side.name: Outcome() for side in sides}
    with ExitStack() as stack:
        running: dict[str, _Running] = {}
        waits = {side.name: side for side in sides}

        def lose(name: str, error: _Lost) -> None:
            found[name] = Outcome(missing=str(error))
            running.pop(name).end()
            say(f"{name}: {error}")

        for side in sides:
            running[side.name] = stack.enter_context(_started(side))
            try:
                running[side.name].answer(side.start_s)
            except _Lost as error:
                lose(side.name, error)
        say(f"{', '.join(running)}: warm")
        began = time.monotonic()
        for turn in range(turns):
            if turn and time.monotonic() - began > budget_s:
                break
            # Another one begins each time, so that none always follows the same one.
            names = list(running)
            for name in names[turn % max(len(names), 1) :] + names[: turn % max(len(names), 1)]:
                since = time.perf_counter()
                running[name].ask(GO)
                try:
                    running[name].answer(waits[name].turn_s)
                except _Lost as error:
                    lose(name, error)
                else:
                    found[name].seconds.append(time.perf_counter() - since)
        for name, process in running.items():
            process.ask(STOP)
            try:
                facts = process.answer(_END_S)
            except _Lost:
                continue  # a peer has nothing to add
            found[name].facts = {key: value for key, value in facts.items() if key != "state"}
            process.wait()
    return found


def from_cold(side: Side, rounds: int) -> Outcome:
    """Returns the time from a process' start to the end of a round, imports included.

    Args:
        side: who runs.
        rounds: of the fresh process.
    """
    began = time.perf_counter()
    with _started(side) as running:
        for _ in range(rounds - 1):
            running.ask(GO)
        try:
            for _ in range(rounds):
                running.answer(side.start_s)
        except _Lost as error:
            say(f"{side.name}: {error}")
            return Outcome(missing=str(error))
        seconds = time.perf_counter() - began
        running.ask(STOP)
        running.wait()
    return Outcome(seconds=[seconds])


def say(what: str) -> None:
    """Tells whoever waits how far things are."""
    print(f"bench: {what}", file=sys.stderr, flush=True)


def _environment(side: Side, folder: Path) -> dict[str, str]:
    """Returns an environment in which Ray finds no cluster but the side's own."""
    inherited = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    return {**inherited, "RAY_TMPDIR": str(folder), **side.environment, FOLDER: str(folder)}


@contextmanager
def _started(side: Side) -> Iterator[_Running]:
    with tempfile.TemporaryDirectory(prefix="lepton-bench-", ignore_cleanup_errors=True) as name:
        running = _Running(side, Path(name))
        try:
            yield running
        finally:
            running.end()
