"""How a side of a comparison waits for its turn before each round; standard library alone.

Two named pipes join it to the benchmark, so that a side may print what it likes, and may run its
rounds in whichever of its processes it wants to.
"""

import json
import os
from pathlib import Path
from typing import IO

FOLDER = "LEPTON_BENCH_TURNS"
ASKED, ANSWERED = "asked", "answered"
GO, STOP = "go\n", "stop\n"


class Turns:
    """The side's end; made once, by whatever runs its rounds."""

    def __init__(self) -> None:
        """Opens the pipes that the environment names."""
        folder = Path(os.environ[FOLDER])
        self._asked: IO[str] = (folder / ASKED).open()
        self._answered: IO[str] = (folder / ANSWERED).open("w")

    def next(self, **facts: float) -> bool:
        """Says that a round has ended, and waits; returns whether there is to be another.

        The first call ends the round that warms up.

        Args:
            **facts: of the round, such as its ``steps``.
        """
        self._say({"state": "round", **facts})
        return self._asked.readline() == GO

    def ended(self, **facts: float) -> None:
        """Says what was measured over all rounds."""
        self._say({"state": "ended", **facts})

    def skipped(self, why: str) -> None:
        """Says why this side cannot run here."""
        self._say({"state": "skipped", "why": why})

    def _say(self, answer: dict[str, object]) -> None:
        self._answered.write(json.dumps(answer) + "\n")
        self._answered.flush()
