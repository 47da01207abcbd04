"""A sweep: one process for each combination, as many at a time as there are cores, one table."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rich.console import Console
from rich.table import Table

from lepton_cli.compose import compose_settings, expand_sweep
from lepton_common.errors import SettingsError


def run_sweep(overrides: list[str], *, as_json: bool) -> int:
    """Runs all combinations and returns the highest exit code.

    Every combination is checked before the first one starts. Each run uses one worker, which
    changes its time and not its result.

    Raises:
        SettingsError: a combination has faults.
    """
    combinations = expand_sweep(overrides)
    faults: list[str] = []
    for combination in combinations:
        try:
            compose_settings(combination)
        except SettingsError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    if faults:
        raise SettingsError(faults)
    console = Console(stderr=True, highlight=False, quiet=as_json)
    console.print(f"Sweeping over {len(combinations)} runs.")
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda words: _one(words, console), combinations))
    if as_json:
        print(json.dumps([{"overrides": words, **document} for words, document, _ in results]))
    else:
        _print_table(overrides, results)
    return max(code for _, _, code in results)


def _one(words: list[str], console: Console) -> tuple[list[str], dict[str, Any], int]:
    set_already = any(word.startswith("engine.workers=") for word in words)
    workers = [] if set_already else ["engine.workers=1"]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "lepton_cli", "simulate", *words, *workers, "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        document = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        document = {"error": "Crashed", "faults": done.stderr.splitlines()[-1:]}
    console.print(f"done ({done.returncode}): {' '.join(words)}", markup=False)
    return words, document, done.returncode


def _print_table(
    overrides: list[str], results: list[tuple[list[str], dict[str, Any], int]]
) -> None:
    swept = [
        index
        for index, text in enumerate(overrides)
        if any(words[index] != text for words, _, _ in results)
    ]
    table = Table(title="Sweep")
    for index in swept:
        table.add_column(overrides[index].partition("=")[0])
    for heading in ("accuracy", "largest epsilon", "run"):
        table.add_column(heading, overflow="fold")
    for words, document, _ in results:
        settings = [words[index].partition("=")[2] for index in swept]
        if "error" in document:
            table.add_row(*settings, "-", "-", f"[red]{document['error']}[/]")
            continue
        spent = [site["epsilon"] for site in document["sites"].values() if site["epsilon"]]
        table.add_row(
            *settings,
            f"{document['metrics']['accuracy']:.4f}",
            f"{max(spent):.3f}" if spent else "[bold red]none[/]",
            document["run"].rpartition("/")[2],
        )
    Console(highlight=False).print(table)
