"""Kills a training site at random lines of its code, again and again, and reads its ledger.

Run as a script with a folder, a number of kills and a seed; prints one JSON line a kill. It is a
process of its own, so that the sites it forks begin with one thread; and it counts lines, not
time, so that the kills are the same on every machine.
"""

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from toy_site import PERMISSIVE, PRIVACY, add_toys, context, synthetic, train_message, write_site

from lepton_client.app import app
from lepton_common.identity.keys import SigningKey
from lepton_common.privacy.ledger_file import read_ledger

# All records in each step: accounted for in closed form, so that rounds are short.
FULL = replace(PRIVACY, sample_rate=1.0)
_ROUNDS = 3  # as many as the plan covers, and one that is refused


def after_lines(count: int, then: Callable[[], None]) -> Callable[..., Any]:
    """Returns a trace function that acts once ``count`` lines of Lepton have run."""
    left = [count]

    def trace(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        if "/lepton_" not in frame.f_code.co_filename:
            return None
        if event == "line":
            left[0] -= 1
            if left[0] == 0:
                then()
        return trace

    return trace


def train(folder: Path, out: int, run: str) -> None:
    """Asks a site for one private round after another, and reports what it answers."""
    for round_ in range(1, _ROUNDS + 2):
        reply = app(train_message(run=run, round=round_, privacy=FULL), context(folder))
        name = reply.error.reason if reply.has_error() else "update"
        os.write(out, f"{name}\n".encode())


def lines_of_a_run(folder: Path) -> int:
    """Returns how many lines of Lepton run in a whole run; what is slow at first is done then."""
    null = os.open(os.devnull, os.O_WRONLY)
    train(folder, null, "warm")
    counted = [0]

    def count(frame: FrameType, event: str, _: object) -> Callable[..., Any] | None:
        counted[0] += event == "line" and "/lepton_" in frame.f_code.co_filename
        return count

    sys.settrace(count)
    train(folder, null, "counted")
    sys.settrace(None)
    return counted[0]


def main(folder: Path, kills: int, seed: int) -> None:
    """Kills ``kills`` sites."""
    torch.set_num_threads(1)
    add_toys({"train": synthetic()})
    for path in (folder.with_name("warm"), folder):
        write_site(path, PERMISSIVE, 40)
    lines = lines_of_a_run(folder.with_name("warm"))
    key = SigningKey.load(folder / "signing.pem").public_hex
    moments, left = random.Random(seed), 0
    for kill in range(kills):
        reading, writing = os.pipe()
        moment = moments.randrange(lines)
        child = os.fork()
        if child == 0:
            sys.settrace(after_lines(moment, lambda: os.kill(os.getpid(), signal.SIGKILL)))
            train(folder, writing, f"run-{kill // 3}")
            os._exit(0)
        os.close(writing)
        os.waitpid(child, 0)
        with os.fdopen(reading) as pipe:
            answers = pipe.read().splitlines()
        left += answers.count("update")
        kinds = []
        if (folder / "ledger.db").exists():
            kinds = [record.kind for record in read_ledger(folder / "ledger.db", key).records]
        line = {
            "left": left,
            "charges": kinds.count("charge"),
            "released": kinds.count("release"),
            "others": sorted(set(answers) - {"update"}),
        }
        sys.stdout.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
