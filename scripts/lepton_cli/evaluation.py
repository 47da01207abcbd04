"""What sites answered where a model's figures were asked: one table, and what it cost."""

from typing import Any

from rich.console import Console
from rich.table import Table

from lepton_cli.run import Run
from lepton_cli.statistics import cost_of, read_statistics, shown
from lepton_common.evaluation.direction import lower_is_better
from lepton_common.tasks.catalog import find_task

_MOST_ROWS = 40


def print_evaluation(run: Run) -> None:
    """Prints every figure with the error that the noise gives it, and what all of them cost."""
    found, console = read_statistics(run), Console(highlight=False)
    private = found["privacy"]["epsilon"] is not None
    answered, people = found["sites"]["answered"], shown(found["people"], 0)
    title = f"{found['task']}: {people} people held back at {answered} sites"
    table = Table(title=title, caption=f"the last model of {found['evaluates']}")
    table.add_column("figure", overflow="fold")
    table.add_column("value" if private else "value (red: without privacy)", justify="right")
    table.add_column("better")
    for name, figure in _rows(run, found)[:_MOST_ROWS]:
        better = "lower" if lower_is_better(name) else "higher"
        table.add_row(name.replace("_", " "), shown(figure, 4, exact=not private), better)
    console.print(table)
    if not found["figures"]:
        console.print("The noise drowns all of them: raise privacy.epsilon, or ask more people.")
    if len(found["figures"]) > _MOST_ROWS:
        left = len(found["figures"]) - _MOST_ROWS
        console.print(f"{left} more figures are in {run.folder.statistics}.")
    if private:
        console.print(
            "± is how far the noise alone moves a figure, and chance adds what it adds to so few "
            "people; - is drowned by the noise. A person counts once, by the mean of their records."
        )
    for site, error in found["sites"]["failed"].items():
        console.print(f"[bold red]{site}[/]: {error}")
    console.print(cost_of(found, "all figures together"))
    console.print(f"In {run.folder.path}: statistics.json.", soft_wrap=True)


def _rows(run: Run, found: dict[str, Any]) -> list[tuple[str, Any]]:
    """Returns the figures, the headline first."""
    figures, first = found["figures"], find_task(run.settings.task).headline.name
    return sorted(figures.items(), key=lambda item: item[0] != first)
