"""What the runs of a sweep came to: one row each, and one for each setting over its seeds."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lepton_cli.run import Run
from lepton_cli.summary import as_json_document, upper
from lepton_common.durable import write_atomic
from lepton_common.evaluation.confidence import over_seeds

SEED = "seed"


@dataclass(frozen=True)
class Result:
    """One run of a sweep.

    Attributes:
        overrides: its words.
        knobs: its value of each setting that the sweep varies, as text.
        document: as `as_json_document` gives it, or ``error`` and ``faults``.
        seconds: that its rounds took.
    """

    overrides: list[str]
    knobs: dict[str, str]
    document: dict[str, Any]
    seconds: float | None = None

    @property
    def finished(self) -> bool:
        """Whether it has all its rounds."""
        return self.document.get("status") == "finished"

    @property
    def headline(self) -> str:
        """Name of the figure that its task is judged by; "" without a finished run."""
        return str(self.document["headline"]) if self.finished else ""

    @property
    def reached(self) -> float | None:
        """That figure of the last round's model; None without a finished run."""
        return float(self.document["metrics"][self.headline]) if self.finished else None

    @property
    def epsilon(self) -> float | None:
        """Largest that a site has spent; None without DP."""
        sites = self.document["sites"].values() if self.finished else ()
        spent = [site["epsilon"] for site in sites if site["epsilon"]]
        return float(max(spent)) if spent else None

    @property
    def fault(self) -> str:
        """Why it did not finish, in a few words; "" where it did."""
        if self.finished:
            return ""
        return str(self.document.get("error", self.document.get("status", "not started")))

    def plain(self) -> dict[str, Any]:
        """Returns all of it as plain values."""
        return {
            "overrides": self.overrides,
            "knobs": self.knobs,
            "seconds": self.seconds,
            **self.document,
        }


@dataclass(frozen=True)
class Group:
    """The runs of one setting, which differ in their seed at most.

    Attributes:
        knobs: its value of each setting that the sweep varies, but the seed.
        runs: number of them that finished.
        failed: number of the others.
        headline: the figure that its task is judged by.
        reached: its mean over the finished ones; None without any.
        deviation: standard deviation over them, of the sample; None with fewer than two.
        low: lower end of the 95 % interval of the mean by Student's t; likewise.
        high: upper end.
        epsilon: largest that a site has spent in any of them; None without DP.
    """

    knobs: dict[str, str]
    runs: int
    failed: int
    headline: str
    reached: float | None
    deviation: float | None
    low: float | None
    high: float | None
    epsilon: float | None


def result_of(run: Run, overrides: list[str], knobs: dict[str, str]) -> Result:
    """Returns the result that lies in a run's folder.

    Raises:
        AuditError: the run's logs do not verify.
    """
    seconds = sum(report.seconds for report in run.rounds)
    return Result(overrides, knobs, as_json_document(run), round(seconds, 3))


def grouped(results: Sequence[Result]) -> list[Group]:
    """Returns the results by setting, over their seeds, in order."""
    parts: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        knobs = tuple((name, value) for name, value in result.knobs.items() if name != SEED)
        parts.setdefault(knobs, []).append(result)
    return [_group(dict(knobs), part) for knobs, part in parts.items()]


def _group(knobs: dict[str, str], results: Sequence[Result]) -> Group:
    reached = [result.reached for result in results if result.reached is not None]
    spent = [result.epsilon for result in results if result.epsilon is not None]
    over = over_seeds(reached) if reached else None
    return Group(
        knobs=knobs,
        runs=len(reached),
        failed=len(results) - len(reached),
        headline=max(result.headline for result in results),
        reached=over.mean if over else None,
        deviation=over.sd if over else None,
        low=over.low if over else None,
        high=over.high if over else None,
        epsilon=max(spent, default=None),
    )


def document(folder: Path, overrides: list[str], results: Sequence[Result]) -> dict[str, Any]:
    """Returns the whole sweep as one document for scripts."""
    return {
        "sweep": str(folder),
        "overrides": overrides,
        "runs": [result.plain() for result in results],
        "groups": [asdict(group) for group in grouped(results)],
    }


def table(results: Sequence[Result]) -> Table:
    """Returns the sweep as a table: a row for each setting, with its mean over seeds."""
    shown = Table(title="Sweep")
    names = [name for name in results[0].knobs if name != SEED]
    seeds = SEED in results[0].knobs
    for name in names:
        shown.add_column(name)
    one = one_headline(results)
    heading = f"{one or 'reached'} (mean ± sd)" if seeds else one or "reached"
    interval = ["95 % of the mean"] if seeds else []
    for text in (heading, *interval, "largest epsilon", "runs" if seeds else "seconds", "remarks"):
        shown.add_column(text, justify="left" if text == "remarks" else "right", overflow="fold")
    for group in grouped(results):
        own = [result for result in results if group.knobs.items() <= result.knobs.items()]
        reached = "-" if group.reached is None else f"{group.reached:.4f}"
        if group.deviation is not None:
            reached += f" ± {group.deviation:.4f}"
        if group.headline and not one:
            reached = f"{group.headline} {reached}"
        epsilon = "none" if group.runs else "-"
        if group.epsilon is not None:
            epsilon = upper(group.epsilon, 3)
        seconds = own[0].seconds
        third = str(group.runs) if seeds else ("-" if seconds is None else f"{seconds:.1f}")
        remarks = ", ".join(dict.fromkeys(result.fault for result in own if result.fault))
        red = epsilon == "none"
        shown.add_row(
            *(group.knobs[name] for name in names),
            reached,
            *([_between(group)] if seeds else []),
            f"[bold red]{epsilon}[/]" if red else epsilon,
            third,
            f"[red]{remarks}[/]" if remarks else "",
        )
    return shown


def _between(group: Group) -> str:
    return "-" if group.low is None else f"{group.low:.4f} to {group.high:.4f}"


def one_headline(results: Sequence[Result]) -> str:
    """Returns the figure that all finished runs are judged by; "" where they differ."""
    names = {result.headline for result in results if result.finished}
    return names.pop() if len(names) == 1 else ""


def write_results(folder: Path, overrides: list[str], results: Sequence[Result]) -> None:
    """Writes ``summary.json``, ``summary.csv`` and ``summary.txt`` into the sweep's folder."""
    whole = json.dumps(document(folder, overrides, results), indent=1)
    write_atomic(folder / "summary.json", whole.encode())
    text = io.StringIO()
    names = [
        *results[0].knobs,
        "status",
        "headline",
        "reached",
        "epsilon",
        "rounds",
        "seconds",
        "run",
    ]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    for result in results:
        found = result.document
        writer.writerow(
            {
                **result.knobs,
                "status": result.fault or "finished",
                "headline": result.headline,
                "reached": result.reached,
                "epsilon": result.epsilon,
                "rounds": found.get("rounds"),
                "seconds": result.seconds,
                "run": found.get("run"),
            }
        )
    write_atomic(folder / "summary.csv", text.getvalue().encode())
    console = Console(file=io.StringIO(), width=120, highlight=False)
    console.print(table(results))
    write_atomic(folder / "summary.txt", console.file.getvalue().encode())  # type: ignore[attr-defined]
