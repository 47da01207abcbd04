"""Runs a sweep: one process for each combination, then one table and one picture."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from lepton_cli.sweep.board import Board
from lepton_cli.sweep.folder import SweepFolder, find_sweep, new_sweep
from lepton_cli.sweep.lanes import Lanes, cores_here, free_memory
from lepton_cli.sweep.picture import draw_sweep
from lepton_cli.sweep.results import Result, document, result_of, table, write_results
from lepton_common.errors import AuditError, Interrupted


def run_sweep(words: Sequence[str], *, as_json: bool) -> int:
    """Runs all combinations, or those of a sweep that did not finish; returns the exit code.

    Every combination is checked before the first one starts. One that fails does not stop the
    others; the exit code is the highest of all.

    Raises:
        SettingsError: a combination has faults.
        RunNotFound: there is no sweep to go on with.
        Interrupted: the user asked to stop; the sweep can be resumed.
    """
    again = any(word.startswith("resume=") for word in words)
    folder = find_sweep(words) if again else new_sweep(list(words))
    results, codes = _Results(folder), [0]
    waiting = [n for n in range(len(folder.combinations)) if not results.finished(n)]
    before = {number: folder.rounds(number) for number in waiting}
    done = len(folder.combinations) - len(waiting)
    with Board(folder, done, quiet=as_json) as board:
        board.say(
            f"Sweeping over {len(waiting)} runs"
            + (f"; {done} are finished" if done else "")
            + (". The first is measured; others join it after its first round." if waiting else ".")
        )

        def ended(number: int, code: int) -> None:
            codes.append(code if code >= 0 else 1)
            board.ended(number, results.take(number, code, stopped=lanes.stops > 0))

        lanes = Lanes(
            command=lambda number, threads: [
                sys.executable, "-m", "lepton_cli", "simulate", "--json",
                *folder.command(number, threads),
            ],
            outputs=folder.outputs,
            telling=lambda number: folder.rounds(number) > before[number],
            look=board.look,
            ended=ended,
            say=board.say,
            cores=cores_here(),
            free=free_memory,
        )  # fmt: skip
        lanes.run(waiting)
    return _conclude(folder, results, max(codes), stopped=lanes.stops > 0, as_json=as_json)


class _Results:
    """What each combination came to so far, from its run's folder or from its process."""

    def __init__(self, folder: SweepFolder) -> None:
        self._folder, self._knobs = folder, folder.knobs
        self._found: dict[int, Result] = {}
        for number in range(len(folder.combinations)):
            run = folder.run(number)
            if run is None:
                continue
            try:
                self._found[number] = result_of(
                    run, folder.combinations[number], self._knobs[number]
                )
            except AuditError as error:
                self._keep(number, {"error": type(error).__name__, "faults": [str(error)]})

    def finished(self, number: int) -> bool:
        """Says whether a combination's run has all its rounds."""
        return number in self._found and self._found[number].finished

    def take(self, number: int, code: int, *, stopped: bool) -> Result:
        """Takes over what a process printed before it ended with a code.

        Args:
            number: of the combination.
            code: of the process; negative: of the signal that ended it.
            stopped: whether the user has asked to stop.
        """
        out, err = (path.read_text(errors="replace") for path in self._folder.outputs(number))
        run, found = self._folder.run(number), _printed(out)
        if stopped and found is None:
            found = {"status": "interrupted"}
        elif code < 0:
            why = f"The system ended it by signal {-code}, as it does where memory runs out."
            found = {"error": "Killed", "faults": [why]}
        elif found is None:
            found = {"error": "Crashed", "faults": err.splitlines()[-1:]}
        if run is not None:
            found = {"run": str(run.folder.path), **found}
        seconds = round(sum(r.seconds for r in run.folder.reports()), 3) if run else None
        return self._keep(number, found, seconds)

    def all(self) -> list[Result]:
        """Returns a result for each combination, in order."""
        return [
            self._found.get(number, Result(words, self._knobs[number], {"status": "not started"}))
            for number, words in enumerate(self._folder.combinations)
        ]

    def _keep(self, number: int, found: dict[str, Any], seconds: float | None = None) -> Result:
        result = Result(self._folder.combinations[number], self._knobs[number], found, seconds)
        self._found[number] = result
        return result


def _printed(text: str) -> dict[str, Any] | None:
    """Returns the document that a run has printed as its last line; None without one."""
    try:
        found = json.loads(text.splitlines()[-1])
    except (ValueError, IndexError):
        return None
    return found if isinstance(found, dict) else None


def _conclude(
    folder: SweepFolder, results: _Results, code: int, *, stopped: bool, as_json: bool
) -> int:
    """Writes and prints what came out."""
    found = results.all()
    write_results(folder.path, folder.overrides, found)
    picture = folder.path / "sweep.png"
    drawn = draw_sweep(found, _title(folder), picture)
    if as_json:
        print(json.dumps(document(folder.path, folder.overrides, found)))
    else:
        _print_all(folder, found, picture if drawn else None)
    left = sum(not result.finished for result in found)
    if stopped and left and as_json:
        return Interrupted.exit_code  # what is printed is one document
    if stopped and left:
        raise Interrupted(
            f"Stopped with {left} of {len(found)} runs unfinished; what they finished is kept. "
            f"Go on with: lepton simulate -m resume={folder.path}"
        )
    return code


def _print_all(folder: SweepFolder, results: Sequence[Result], picture: Path | None) -> None:
    console = Console(highlight=False)
    console.print(table(results))
    console.print(f"Sweep folder: {folder.path}", soft_wrap=True)
    console.print(f"Each run:     {folder.path / 'summary.csv'}", soft_wrap=True)
    if picture is not None:
        console.print(f"Picture:      {picture}", soft_wrap=True)


def _title(folder: SweepFolder) -> str:
    """Returns the task and the number of sites, where they are the same in all runs."""
    settings = [folder.settings(number) for number in range(len(folder.combinations))]
    tasks, sites = {one.task for one in settings}, {one.sites for one in settings}
    what = tasks.pop() if len(tasks) == 1 else f"{len(tasks)} tasks"
    return f"{what}: {sites.pop()} sites" if len(sites) == 1 else what
