"""What sites answered where statistics were asked: one table, pictures, and what it cost."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from lepton_cli.pictures import BLUE, new_figure
from lepton_cli.run import Run
from lepton_cli.summary import upper
from lepton_common.errors import RunNotFound

_MOST_ROWS, _MOST_PICTURES, _ACROSS = 40, 30, 5
_QUANTILES = ("0.25", "0.5", "0.75")


def read_statistics(run: Run) -> dict[str, Any]:
    """Returns what a run's sites answered.

    Raises:
        AuditError: a log does not verify, or the answer is not the one that it names.
        RunNotFound: there is none.
    """
    path = run.folder.statistics
    _ = run.evidence
    if not path.exists():
        raise RunNotFound(f"The run {run.name} holds no statistics; 'lepton stats' asks for some.")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def print_statistics(run: Run) -> None:
    """Prints what a run's sites answered, as `print_answer` does."""
    where = f"In {run.folder.path}: statistics.json and pictures."
    print_answer(read_statistics(run), where)


def print_answer(found: dict[str, Any], where: str) -> None:
    """Prints one table, whose errors are those of the noise, and what it cost.

    Args:
        found: what `read_statistics` returns, or a coordinator has sent.
        where: a sentence that says where all of it is.
    """
    console = Console(highlight=False)
    answered = found["sites"]["answered"]
    title = f"{found['task']}: {shown(found['people'], 0)} people at {answered} sites"
    table = Table(title=title)
    table.add_column("what", overflow="fold")
    for heading in ("mean", "variance", "25 %", "median", "75 %", "missing", "people", "share"):
        table.add_column(heading, justify="right")
    for row in found["labels"]:
        share = shown(row["share"])
        table.add_row(f"label {row['label']}", *[""] * 6, shown(row["count"], 0), share)
    columns = found["features"]
    for row in columns[:_MOST_ROWS]:
        quantiles = [shown(row["quantiles"][share]) for share in _QUANTILES]
        table.add_row(row["name"], shown(row["mean"]), shown(row["variance"]), *quantiles,
                      shown(row["missing"]), "", "")  # fmt: skip
    console.print(table)
    if len(columns) > _MOST_ROWS:
        console.print(f"{len(columns) - _MOST_ROWS} more features are in the JSON.")
    console.print(
        f"± is one standard deviation of the noise. Features are on their public ranges as -1 to "
        f"1; labels: {found['label']}. A person counts once, by the mean of their records."
    )
    for site, error in found["sites"]["failed"].items():
        console.print(f"[bold red]{site}[/]: {error}")
    console.print(cost_of(found, "all of it"))
    console.print(where, soft_wrap=True)


def cost_of(found: dict[str, Any], what: str) -> str:
    """Returns in one sentence what an answer cost the people, or in red that it was not private."""
    cost = found["privacy"]
    if cost["epsilon"] is None:
        masked = cost["secagg"] != "none"
        seen = "saw the sum alone" if masked else "read each site's own answer"
        return f"[bold red]No differential privacy:[/] {what} is exact, and the server {seen}."
    how = (
        "the noise is shared inside secure aggregation"
        if cost["mode"] == "distributed"
        else "the server read each site's own noised answer"
    )
    return (
        f"Cost: epsilon [bold]{upper(cost['epsilon'], 3)}[/] at delta "
        f"{cost['delta']:g} for each {found['unit']} for {what}, charged to each site's ledger; "
        f"{how}."
    )


def draw_statistics(run: Run) -> list[Path]:
    """Draws histograms and labels, with the noise's standard deviation, into the run's folder."""
    found, drawn = read_statistics(run), []
    cost = f"epsilon {upper(found['privacy']['epsilon'], 2)} at delta {found['privacy']['delta']:g}"
    if found["labels"]:
        figure, axes = new_figure(7.0, 3.5)
        counts = [row["count"] for row in found["labels"]]
        _bars(axes, np.arange(len(counts)), [count["value"] for count in counts],
              counts[0]["error"], 0.8)  # fmt: skip
        axes.set_title(f"{found['task']}: labels, {cost}")
        axes.set_xlabel(found["label"])
        axes.set_ylabel("people")
        drawn.append(_save(figure, run, "statistics_labels.png"))
    columns = found["features"][:_MOST_PICTURES]
    if columns:
        drawn.append(_save(_histograms(columns, f"{found['task']}: {cost}"), run,
                           "statistics_features.png"))  # fmt: skip
    return drawn


def _histograms(columns: list[dict[str, Any]], title: str) -> Figure:
    across = min(_ACROSS, len(columns))
    down = -(-len(columns) // across)
    figure = Figure(figsize=(2.4 * across + 0.6, 1.9 * down + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(down, across, squeeze=False).ravel()
    for axes, column in zip(grid, columns, strict=False):
        histogram = column["histogram"]
        bins = len(histogram["counts"])
        centres = -1.0 + (2.0 * np.arange(bins) + 1.0) / bins
        _bars(axes, centres, histogram["counts"], histogram["error"], 1.8 / bins)
        axes.set_title(column["name"], fontsize=7)
        axes.tick_params(labelsize=6)
    for axes in grid[len(columns) :]:
        axes.set_visible(False)
    figure.suptitle(title, fontsize=9)
    return figure


def _bars(axes: Axes, places: np.ndarray, heights: list[float], error: float, width: float) -> None:
    axes.bar(places, heights, width, color=BLUE, alpha=0.8)
    axes.errorbar(places, heights, yerr=error, fmt="none", ecolor="#333333", elinewidth=0.8)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


def shown(figure: dict[str, float] | None, digits: int = 3, *, exact: bool = False) -> str:
    """Returns a figure and its error, or a dash where the noise drowns it."""
    if figure is None:
        return "-"
    if exact or figure["error"] == 0:
        return f"{figure['value']:,.{digits}f}"
    return f"{figure['value']:,.{digits}f} ± {figure['error']:,.{digits}f}"


def _save(figure: Figure, run: Run, name: str) -> Path:
    path = run.folder.path / name
    figure.savefig(path, dpi=130)
    return path
