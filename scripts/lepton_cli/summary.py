"""What a run came to, in one table each for its model and for privacy."""

import math
import shlex
import statistics
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lepton_cli.evidence import Evidence
from lepton_cli.exposure import Exposure, exposure
from lepton_cli.run import Run
from lepton_cli.site_evidence import Totals
from lepton_common.models.tree_form import form_of
from lepton_common.privacy.plan import WHOLE_SITE
from lepton_common.settings import Settings, poisoned_tolerated

_MOST_SITES = 12
_FEW_SITES = 100  # for whole updates
_ENDED = {"failed": "failed", "interrupted": "was interrupted"}


def comparison(run: Run) -> list[tuple[str, float, str]]:
    """Returns rows (what, headline, remark) of the federated model and its baselines."""
    privacy = run.settings.privacy
    how = f"epsilon {privacy.epsilon:g} at each site" if privacy.epsilon else "no privacy"
    if run.settings.shares_noise:
        how += f", with {run.settings.colluders} colluding"
    rows = [("Federated", run.reached, how)]
    baselines = run.baselines
    if not baselines:
        return rows
    local = list(baselines["local"].values())
    rows.append(
        (
            "Each site alone",
            statistics.mean(local),
            f"{how}; mean of {len(local)} sites, {min(local):.3f} to {max(local):.3f}",
        )
    )
    rows.append(("Pooled in one place", baselines["pooled"], how.partition(" at each site")[0]))
    if "pooled_without_privacy" in baselines:
        rows.append(("Pooled, no privacy", baselines["pooled_without_privacy"], "the ceiling"))
    return rows


def statement(run: Run) -> str:
    """Returns the privacy statement of a run, as its evidence proves it."""
    totals = run.evidence.totals
    if totals.without_dp:
        return (
            f"NOT PRIVATE: no differential privacy. {_aggregation(run)} "
            "Do not use this setting with real people's data."
        )
    unit = ", ".join(sorted(totals.units)) or "row"
    person = {
        "row": "Protected per row, not per person: the data names no person. ",
        WHOLE_SITE: "Protected per site: all that its data changed. ",
    }.get(unit, f"Protected per {unit}. ")
    guarantees = " and ".join(
        f"({upper(epsilon, 2)}, {delta:g})" for delta, epsilon in totals.spent.items()
    )
    return (
        f"{guarantees or 'Nothing spent, 0'}-differential privacy at each site, "
        f"add-or-remove-one, {_mechanism(run)}, accounted over all charged "
        f"rounds. {person}{_shared(run)}{_engines(totals)}{_persons(unit)}{_aggregation(run)}"
    )


_MECHANISMS = {
    "none": "without noise",
    "record": "record-level DP-SGD",
    "distributed": "record-level DP-SGD over the union of the sites, with shared Skellam noise",
    "site": "whole updates clipped, with shared Skellam noise",
}


def _mechanism(run: Run) -> str:
    """Returns what was noised, and how."""
    said = _MECHANISMS[run.settings.privacy.mode]
    return said if form_of(run.settings.model) is None else said.replace("DP-SGD", "DP histograms")


def _persons(unit: str) -> str:
    """Returns what holds for people whom several sites know."""
    if unit == WHOLE_SITE:
        return ""
    return "Who has data at several sites adds up their epsilons. "


def _shared(run: Run) -> str:
    """Returns on whom a guarantee by shared noise depends."""
    found = exposure(run)
    if found is None:
        return ""
    noise = found.shared
    few = noise.sites < _FEW_SITES and run.settings.privacy.mode == "site"
    return (
        f"This holds while at most {noise.colluders} of {noise.sites} sites collude and "
        f"{noise.sites - noise.survivors} drop out of a round (every sum has {noise.survivors} or "
        f"more); with secure aggregation broken, a site's own noise leaves epsilon "
        f"{upper(found.broken, 2)}. "
        + (f"{noise.sites} sites are few: one site's update is hard to hide. " if few else "")
    )


def _engines(totals: Totals) -> str:
    """Returns how the engine of private gradients compared with Opacus before each run."""
    if totals.by_opacus:
        return f"Gradients by Opacus at {totals.by_opacus} sites, where ours differed from it. "
    if totals.together:
        return (
            "Sites were trained together, where what rounding may carry from one record to another "
            "is not tried: this simulates the guarantee, and does not hold it against a server "
            "that chooses its weights. "
        )
    if totals.difference is None:
        return ""
    return f"Gradients within {totals.difference:.0e} of the reference's. "


def is_red(run: Run) -> bool:
    """Tells whether a run lacked a protection that it could have had."""
    return run.evidence.totals.without_dp or run.evidence.totals.readable


def _aggregation(run: Run) -> str:
    totals = run.evidence.totals
    if totals.readable:
        return "SECURE AGGREGATION OFF: the server could read each site's updates."
    if not any("secagg" in kind for kind in totals.bytes_left):
        return "No update left a site."
    remark = " A sum may still reveal records." if totals.without_dp else ""
    return (
        "The server saw sums of updates only (SA1), which holds against it and up to "
        f"{run.settings.colluders} colluding sites.{_groups(run.settings)}{remark}"
    )


def _groups(settings: Settings) -> str:
    """Returns what groups cost and give: one poisoned site poisons the sum of its whole group."""
    groups = settings.secagg.groups
    if groups == 1:
        return ""
    held = poisoned_tolerated(settings.strategy, groups)
    return (
        f" Each round had {groups} groups, drawn by the sites, with a sum each; "
        f"{settings.strategy.name} holds against fewer than {held + 1} poisoned of them, and one "
        "poisoned site poisons its group."
    )


def upper(epsilon: float, digits: int) -> str:
    """Returns an epsilon as text, rounded up: a bound must not shrink when it is printed."""
    if not epsilon < 1e9:
        return "unbounded"
    return f"{math.ceil(epsilon * 10**digits) / 10**digits:.{digits}f}"


def print_summary(run: Run) -> None:
    """Prints the tables, where things lie, and the next command to try."""
    console = Console(highlight=False)
    title = run.headline.title
    models = Table(title=f"{run.settings.task}: {title} on the server's test set")
    for heading, side in (("model", "left"), (title, "right"), ("how", "left")):
        models.add_column(heading, justify=side)  # type: ignore[arg-type]
    for what, value, remark in comparison(run):
        models.add_row(what, f"{value:.3f}", remark)
    console.print(models)
    console.print(_site_table(run.evidence))
    shared = exposure(run)
    if shared is not None:
        console.print(_exposure_table(shared))
    console.print(f"[bold red]{statement(run)}[/]" if is_red(run) else statement(run))
    if run.status in ("failed", "interrupted"):
        why = f": {run.outcome['error']}" if "error" in run.outcome else ""
        done = f"after {len(run.rounds)} of {run.settings.rounds} rounds"
        console.print(f"[bold red]This run {_ENDED[run.status]} {done}{why}.[/]")
    witnessed = run.evidence.witnessed
    count = run.evidence.server_records + run.evidence.totals.records
    console.print(f"Audit log verified: {count} signed records, {witnessed} witnessed.")
    console.print(f"Run folder:     {run.folder.path}", soft_wrap=True)
    console.print(f"Learning curve: {run.folder.path / 'learning_curve.png'}", soft_wrap=True)
    console.print(f"Report:         {run.report}", soft_wrap=True)
    console.print(f"Next: [bold]{next_command(run)}[/]", soft_wrap=True)


def _exposure_table(found: Exposure) -> Table:
    table = Table(title=f"What shared noise protects against (epsilon at delta {found.delta:g})")
    every, fewest = found.shared.sites, found.shared.survivors
    for heading in ("sites that collude", f"all {every} answered", f"only {fewest} answered"):
        table.add_column(heading, justify="right")
    for count, whole, least in found.rows:
        style = "bold" if count == found.shared.colluders else None
        table.add_row(str(count), upper(whole, 2), upper(least, 2), style=style)
    table.caption = (
        f"secure aggregation broken: {upper(found.broken, 2)}; bold: the number tolerated, for "
        "which the noise was chosen"
    )
    return table


def next_command(run: Run) -> str:
    """Returns the one command to try next."""
    root = run.settings.data.root
    where = f" data.root={shlex.quote(root)}" if root else ""
    if run.settings.crowded:
        data, cohort = run.settings.data, run.settings.federation.cohort or "null"
        where += f" secagg=none federation.cohort={cohort} data.partition={data.partition}"
        where += f" data.records_per_site={data.records_per_site or 'null'}"
    if run.settings.private:
        mode, sites = run.settings.privacy.mode, run.settings.sites
        return (
            f"lepton simulate -m task={run.settings.task}{where} sites={sites} privacy={mode} "
            "privacy.epsilon=1,3,8"
        )
    if run.settings.crowded:
        where += f" sites={run.settings.sites}"
    return f"lepton simulate task={run.settings.task}{where} privacy=record privacy.epsilon=3"


def as_json_document(run: Run) -> dict[str, Any]:
    """Returns the same for scripts."""
    shared = exposure(run)
    return {
        "run": str(run.folder.path),
        "status": run.status,
        "rounds": len(run.rounds),
        "headline": run.headline.name,
        "metrics": run.metrics,
        "baselines": run.baselines,
        "statement": statement(run),
        "shared_noise": None if shared is None else asdict(shared),
        "sites_in_all": run.evidence.totals.sites,
        "sites": {
            site.name: {
                "epsilon": site.epsilon,
                "delta": site.delta,
                "bytes_left": site.bytes_left,
                "refusals": site.refusals,
            }
            for site in run.evidence.sites.values()
        },
    }


def _site_table(evidence: Evidence) -> Table:
    totals = evidence.totals
    at = f" (delta {', '.join(f'{delta:g}' for delta in sorted(totals.spent))})"
    table = Table(
        title=f"What each site spent{at if totals.spent else ''}, and the bytes that left it, by "
        "what protects them"
    )
    kinds = sorted(totals.bytes_left)
    for heading in ("site", "epsilon spent", "bytes left", *kinds):
        style = "bold red" if heading in ("unprotected", "dp", "secagg") else None
        table.add_column(heading, justify="left" if heading == "site" else "right", style=style)

    def add(name: str, epsilon: float | None, left: dict[str, int]) -> None:
        spent = "-" if epsilon is None else upper(epsilon, 3)
        parts = (f"{left.get(kind, 0):,}" for kind in kinds)
        table.add_row(name, spent, f"{sum(left.values()):,}", *parts)

    shown = list(evidence.sites.values())
    if totals.sites > len(shown):  # then these are the ones that spent most
        shown.sort(key=lambda site: (site.epsilon or 0.0, site.total_bytes), reverse=True)
    for site in shown[:_MOST_SITES]:
        add(site.name, site.epsilon, site.bytes_left)
    if totals.sites > _MOST_SITES:
        table.add_row(f"… {totals.sites - _MOST_SITES:,} more")
        table.caption = "all sites: report.html"
    if totals.sites > len(shown):
        add(f"all {totals.sites:,}", max(totals.spent.values(), default=None), totals.bytes_left)
        table.caption = f"the {len(shown):,} sites that spent most: report.html"
    return table
