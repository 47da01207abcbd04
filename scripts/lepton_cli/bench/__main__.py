"""The one face of all benchmarks."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from lepton_cli.bench import Row, deployment, privacy, secagg
from lepton_cli.bench.simulation import plots, reference, scaling, small
from lepton_common.names import look_up


def _simulation(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields all rows of simulation; those of scaling where there is time."""
    yield from reference.rows(quick, with_peers)
    yield from small.rows(quick, with_peers)
    if not quick:
        yield from scaling.rows(quick, with_peers)


BENCHMARKS: dict[str, Callable[[bool, bool], Iterator[Row]]] = {
    "deployment": deployment.rows,
    "deployment_large": deployment.rows_large,
    "deployment_sites": deployment.rows_by_sites,
    "privacy": privacy.rows,
    "secagg": secagg.rows,
    "simulation": _simulation,
    "simulation_reference": reference.rows,
    "simulation_scaling": scaling.rows,
    "simulation_small": small.rows,
}


def main(
    name: Annotated[str, typer.Argument(help=f"One of: {', '.join(BENCHMARKS)}.")],
    quick: Annotated[bool, typer.Option("--quick", help="End within about a minute.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also run peers, installed in environments apart.")
    ] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the rows to a file too.")
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option("--plots", help="Draw simulation's rows into a folder.")
    ] = None,
) -> None:
    """Run a benchmark and print its table; ratios above 1 mean that we are faster."""
    found = list(look_up(BENCHMARKS, name, "benchmark")(quick, peers))
    table = Table(title=name)
    for heading, right in (("row", False), ("value", True), ("unit", False), ("ratio", True)):
        table.add_column(heading, justify="right" if right else "left")
    for row in found:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        table.add_row(row.name, "-" if row.value is None else f"{row.value:.3f}", row.unit, ratio)
    Console(highlight=False).print(table)
    if json_file is not None:
        json_file.write_text(json.dumps([asdict(row) for row in found], indent=1))
    if pictures is not None:
        for path in plots.draw(found, pictures):
            print(path)


if __name__ == "__main__":
    typer.run(main)
