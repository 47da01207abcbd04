"""Runs commands side by side, as many as cores and memory allow by what the first ones needed."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

_LOOK_S = 0.2
_UP_S = 60.0  # by when a command listens to signals, however slow the machine
_SHARE = 0.8  # of the free memory; the rest is for what grows later, and for others
_CGROUP = Path("/sys/fs/cgroup")


@dataclass
class Lane:
    """One command on its way.

    Attributes:
        number: which of them, from 0.
        process: its process, which leads a session of its own.
        peak: largest memory seen of it and its children, in bytes.
        asked: whether it was asked to end after its round.
        began: when it was started, by the monotonic clock in seconds.
    """

    number: int
    process: "subprocess.Popen[bytes]"
    peak: int = 0
    asked: bool = False
    began: float = field(default_factory=time.monotonic)


@dataclass
class Lanes:
    """Starts commands and waits for them.

    Ctrl-C asks all that run to end after their round and starts no more; a second one ends them
    at once.

    Attributes:
        command: returns a command by its number and the number of its threads.
        outputs: returns the files for what it prints and what it complains about.
        telling: whether what a running command holds tells what it needs: its first round is over.
        look: called now and then with the numbers of those that run.
        ended: called with number and exit code of each that has ended.
        say: takes one line for the user.
        cores: of the machine.
        free: returns the memory that is free, in bytes.
        stops: times that the user has asked to stop.
    """

    command: Callable[[int, int], list[str]]
    outputs: Callable[[int], tuple[Path, Path]]
    telling: Callable[[int], bool]
    look: Callable[[list[int]], None]
    ended: Callable[[int, int], None]
    say: Callable[[str], None]
    cores: int
    free: Callable[[], int]
    stops: int = 0
    _running: list[Lane] = field(default_factory=list)
    _need: int = 0
    _said: int = 0

    def run(self, numbers: list[int]) -> None:
        """Runs the commands of these numbers; returns when all have ended, or on Ctrl-C."""
        waiting = deque(numbers)
        with self._interruptible():
            while self._running or (waiting and not self.stops):
                self._measure()
                at_a_time = self._at_a_time(len(waiting))
                while waiting and not self.stops and len(self._running) < at_a_time:
                    together = at_a_time if self._need else self.cores
                    share = max(1, self.cores // min(together, len(numbers)))
                    self._start(waiting.popleft(), share)
                time.sleep(_LOOK_S)
                self._obey()
                self.look([lane.number for lane in self._running])
                self._reap()

    def _measure(self) -> None:
        for lane in self._running:
            lane.peak = max(lane.peak, _held(lane.process.pid))
            if self.telling(lane.number):
                self._need = max(self._need, lane.peak)

    def _at_a_time(self, waiting: int) -> int:
        """Returns how many may run at a time, and says so when it is new."""
        if not self._need:
            return 1
        free = self.free() + sum(_held(lane.process.pid) for lane in self._running)
        number = lanes_in(free, self._need, self.cores)
        if number != self._said and waiting and not self.stops:
            self._said = number
            self.say(
                f"Up to {number} at a time: {self.cores} cores, and one run needs "
                f"{_gb(self._need)} of the {_gb(free)} that are free."
            )
        return number

    def _start(self, number: int, threads: int) -> None:
        out, err = self.outputs(number)
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        with out.open("wb") as printed, err.open("wb") as complained:
            process = subprocess.Popen(  # noqa: S603
                self.command(number, threads),
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=complained,
                env=environment,
                start_new_session=True,  # so that Ctrl-C reaches it once, from here
            )
        self._running.append(Lane(number, process))

    def _reap(self) -> None:
        for lane in list(self._running):
            code = lane.process.poll()
            if code is not None:
                self._running.remove(lane)
                if code == 0:
                    self._need = max(self._need, lane.peak)
                self.ended(lane.number, code)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        kinds = (signal.SIGINT, signal.SIGTERM)
        before: dict[int, Any] = {kind: signal.signal(kind, self._stop) for kind in kinds}
        try:
            yield
        finally:
            self._kill()
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # Nothing is signalled here: a command may be starting at this moment, not yet in any list.
        self.stops += 1
        if self.stops == 1:
            self.say("Ending what runs after its round; press Ctrl-C again to end it at once.")

    def _obey(self) -> None:
        """Does what the user has asked for by now."""
        if self.stops > 1:
            self._kill()
        elif self.stops:
            # A command that is only starting would lose the signal, or die of it half made.
            for lane in self._running:
                up = self.telling(lane.number) or time.monotonic() - lane.began > _UP_S
                if up and not lane.asked:
                    lane.asked = True
                    with suppress(ProcessLookupError):
                        os.kill(lane.process.pid, signal.SIGINT)

    def _kill(self) -> None:
        for lane in self._running:
            with suppress(ProcessLookupError):
                os.killpg(lane.process.pid, signal.SIGKILL)


def lanes_in(free: int, need: int, cores: int) -> int:
    """Returns how many runs go at a time: at least one, at most one a core.

    Args:
        free: memory for all of them, in bytes.
        need: of one, in bytes.
        cores: of the machine.
    """
    return max(1, min(cores, int(free * _SHARE) // max(1, need)))


def cores_here() -> int:
    """Returns the cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def free_memory(cgroup: Path = _CGROUP) -> int:
    """Returns the memory that may still be used, in bytes: of the machine, or of a container."""
    free = int(psutil.virtual_memory().available)
    with suppress(OSError, ValueError):
        limit = int((cgroup / "memory.max").read_text())
        held = int((cgroup / "memory.current").read_text())
        facts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        free = min(free, limit - held + int(facts.get("inactive_file", 0)))
    return max(0, free)


def _held(pid: int) -> int:
    """Returns the resident memory of a process and its children, in bytes; 0 once it is gone."""
    total = 0
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += int(one.memory_info().rss)
    return total


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
