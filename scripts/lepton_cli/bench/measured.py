"""What both sides of a comparison have measured in the same way: time a round, peak of memory."""

import itertools
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lepton_cli.bench.memory import PeakMemory
from lepton_client.isolation import bound
from lepton_common.errors import RunError

_LOOK_S, _STUCK_S, _STOP_S = 0.01, 900.0, 20.0


@dataclass(frozen=True)
class Measured:
    """What some rounds took.

    Attributes:
        seconds: of each round after the first, by the clock of the wall.
        idle: memory of the coordinator's processes before, in bytes.
        peak: largest while it ran, in bytes.
        at_peak: what each of its processes had then, in bytes.
    """

    seconds: list[float]
    idle: int
    peak: int
    at_peak: dict[str, int]

    @property
    def median(self) -> float:
        """Median of the rounds' times, in seconds."""
        return statistics.median(self.seconds)


def measure_rounds(
    root: int, rounds: int, finished: Callable[[], int], failed: Callable[[], str | None]
) -> Measured:
    """Waits for some rounds.

    Args:
        root: process above all of the coordinator's.
        rounds: how many there will be; the first is warm-up.
        finished: tells how many are finished.
        failed: tells why there will be no more; None while there may be.

    Raises:
        RunError: there are no more, or none came for 15 minutes.
    """
    ended: list[float] = []
    with PeakMemory(root) as memory:
        last = time.monotonic()
        while len(ended) < rounds:
            now = time.monotonic()
            for _ in range(finished() - len(ended)):
                ended.append(last := now)
            if (fault := failed()) is not None or now - last > _STUCK_S:
                raise RunError(f"A run of the benchmark ended early: {fault or 'it hangs'}.")
            time.sleep(_LOOK_S)
    seconds = [after - before for before, after in itertools.pairwise(ended)]
    return Measured(seconds, memory.first, memory.peak, memory.at_peak)


def free_port() -> int:
    """Returns a port on loopback that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    words: Sequence[str], folder: Path, log: str, environment: Mapping[str, str]
) -> Iterator[int]:
    """Gives the number of a process of this environment's commands, and ends it.

    Args:
        words: its command.
        folder: in which it works.
        log: name of the file there for what it prints.
        environment: what it has beside this process's own.
    """
    path = str(Path(sys.executable).with_name(words[0]))
    with (folder / log).open("wb") as file:
        process = subprocess.Popen(  # noqa: S603
            bound([path, *words[1:]]),
            cwd=folder,
            stdout=file,
            stderr=file,
            env={**os.environ, **environment},
        )
        try:
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
