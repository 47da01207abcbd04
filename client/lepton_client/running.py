"""Whether an agent works in a site's folder: it holds a lock there, which dies with it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lepton_common.errors import AgentRunning
from lepton_common.locks import only_one

LOCK_FILE = "agent.lock"


@contextmanager
def only_agent(folder: Path) -> Iterator[None]:
    """Keeps other agents out of a site's folder, and shows that one is there.

    Raises:
        AgentRunning: one is there already.
    """
    taken = AgentRunning(
        f"An agent works in {folder} already: the logs there have one writer; end it first."
    )
    with only_one(folder / LOCK_FILE, taken) as file:
        os.ftruncate(file, 0)
        os.write(file, str(os.getpid()).encode())
        yield


def agent_of(folder: Path) -> int | None:
    """Returns the process id of the agent that works in a folder; None where none does."""
    try:
        file = os.open(folder / LOCK_FILE, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        # Shared, so that two who look do not take each other for the agent.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        said = os.read(file, 32)
        return int(said) if said.isdigit() else 0
    else:
        return None
    finally:
        os.close(file)
