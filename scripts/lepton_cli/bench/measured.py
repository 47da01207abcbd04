"""What both sides of a comparison have measured in the same way: time a round, peak of memory."""

import itertools
import socket
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass

from lepton_cli.bench.memory import PeakMemory
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


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, which takes along what it has started."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
