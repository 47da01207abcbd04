"""``lepton tasks``: what can be learned, on which data, and whether with privacy by record."""

import json
from dataclasses import asdict, dataclass
from importlib import resources
from typing import Annotated

import typer
import yaml
from rich.console import Console
from rich.table import Table

HELP = """List every task: what it learns, on which data, by which model, with what privacy.

  lepton tasks
  lepton tasks --json
  lepton simulate task=NAME data.root=made-up

The last line runs any task that has data of its form made up, where its real data is not at hand.
"""


@dataclass(frozen=True)
class _Row:
    task: str
    data: str
    domain: str
    learns: str
    judged_by: str
    model: str
    privacy: str
    label: str
    package: str | None


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Prints the tasks of this installation."""
    from lepton_common.tasks.catalog import task_names

    rows = [_row(name) for name in task_names()]
    if as_json:
        print(json.dumps([asdict(row) for row in rows]))
        return
    table = Table(title=f"{len(rows)} tasks")
    for heading in ("task", "data", "domain", "model", "judged by", "privacy"):
        table.add_column(heading, no_wrap=heading == "task")
    for row in rows:
        name = row.task if row.package is None else f"{row.task} [dim]({row.package})[/]"
        private = row.privacy if row.privacy == "record" else f"[red]{row.privacy}[/]"
        table.add_row(name, row.data, row.domain, row.model, row.judged_by, private)
    Console(highlight=False).print(table)


def _row(name: str) -> _Row:
    from lepton_common.extensions import TASKS as PACKAGED
    from lepton_common.extensions import extensions
    from lepton_common.tasks.catalog import TASKS, find_task

    task = find_task(name)
    of_package = None if name in TASKS else extensions(PACKAGED)[name]
    return _Row(
        task=name,
        data=task.form,
        domain=task.domain,
        learns=task.learns,
        judged_by=task.headline.name,
        model=_model(name) if of_package is None else _packaged_model(name),
        privacy="record" if task.objective.apart else "whole sites only",
        label=task.label,
        package=None if of_package is None else of_package.module.partition(".")[0],
    )


def _model(name: str) -> str:
    """Returns the model that a task's file chooses; composing all of them would take seconds."""
    file = resources.files("lepton_conf").joinpath("task", f"{name}.yaml")
    chosen = {
        group: choice
        for entry in yaml.safe_load(file.read_text()).get("defaults", [])
        if isinstance(entry, dict)
        for group, choice in entry.items()
    }
    return str(chosen["override /model"])


def _packaged_model(name: str) -> str:
    from lepton_common.tasks.packaged import packaged_task

    said = [word for word in packaged_task(name).settings if word.startswith("model=")]
    return said[-1].removeprefix("model=") if said else _model("packaged")
