"""The coordinator's own processes: each ends with the coordinator, and takes its children along."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Literal

_STOP_S = 10.0
Part = subprocess.Popen[bytes]


def start_part(
    words: Sequence[str | Path],
    *,
    at_death: Literal["TERM", "KILL"],
    environment: dict[str, str] | None = None,
    output: IO[bytes] | int | None = None,
) -> Part:
    """Starts a process in a group of its own.

    Args:
        words: the command.
        at_death: the signal that the system sends it when the coordinator dies, however it dies.
        environment: None for the coordinator's.
        output: for what it prints; None for where the coordinator prints.
    """
    setpriv = shutil.which("setpriv")  # of util-linux; without it, kill -9 leaves parts behind
    bound = [setpriv, "--pdeathsig", at_death] if setpriv else []
    return subprocess.Popen(  # noqa: S603
        [*bound, *map(str, words)],
        env=environment,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )


def stop_part(part: Part) -> None:
    """Ends a process and what is left of its group, also where the process itself is gone."""
    if part.poll() is None:
        part.terminate()
        with suppress(subprocess.TimeoutExpired):
            part.wait(_STOP_S)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(part.pid, signal.SIGKILL)
    part.wait()
