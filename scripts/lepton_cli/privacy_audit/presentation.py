"""An audit on paper: tables with one verdict, or one JSON document."""

import math
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from lepton_cli.privacy_audit.audit import Audit
from lepton_cli.privacy_audit.membership import FALSE_POSITIVES
from lepton_cli.privacy_audit.one_run import CONFIDENCE
from lepton_cli.summary import upper


def document(found: Audit) -> dict[str, Any]:
    """Returns an audit as plain values; what is unbounded is null."""
    claim, plan = found.claim, found.claim.plan
    one_run = asdict(found.one_run)
    del one_run["checks"]  # among the others
    values = {
        "claim": {
            "source": claim.source,
            "device": found.device,
            "epsilon": found.epsilon,
            "delta": plan.delta,
            "noise_multiplier": plan.noise_multiplier,
            "clipping_norm": plan.clipping_norm,
            "sample_rate": plan.sample_rate,
            "steps": claim.steps,
            "of_steps": claim.of_steps,
            "shared": asdict(plan.shared) if plan.shared else None,
        },
        "conformance": [asdict(check) for check in found.checks],
        "one_run": {**one_run, "runs": found.runs},
        "membership": asdict(found.membership),
        "inversion": asdict(found.inversion),
        "passed": not found.faults,
        "faults": found.faults,
    }
    return dict(_finite(values))


def _finite(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_audit(found: Audit) -> None:
    """Prints an audit as tables, and its verdict in one line."""
    console = Console(highlight=False)
    claim, plan = found.claim, found.claim.plan
    part = "" if claim.steps == claim.of_steps else f", the first of {claim.of_steps}"
    console.print(
        f"Audit of {claim.source}: noise multiplier [bold]{plan.noise_multiplier:.4f}[/], clipping "
        f"norm {plan.clipping_norm:g}, sample rate {plan.sample_rate:.6g}, {claim.steps} steps"
        f"{part}, on {found.device}. Claimed: epsilon "
        f"[bold]{_up(found.epsilon)}[/] at delta {plan.delta:g}.",
        soft_wrap=True,
    )
    console.print(_conformance(found))
    console.print(_one_run(found))
    console.print(_attacks(found))
    if found.faults:
        console.print("[bold red]FAILED[/]: this installation does not keep the claim.")
        return
    console.print(
        f"[green]Consistent with the claim[/]: all {len(found.checks)} checks passed, and the "
        f"certified lower bound {_down(found.one_run.certified_epsilon)} is below epsilon "
        f"{_up(found.epsilon)}."
    )


def _conformance(found: Audit) -> Table:
    table = Table("check", "", "measured", "expected", title="Conformance")
    for check in found.checks:
        mark = "[green]ok[/]" if check.passed else "[bold red]FAILED[/]"
        table.add_row(check.name, mark, check.measured, check.expected)
    return table


def _one_run(found: Audit) -> Table:
    one, estimate = found.one_run, found.one_run.gaussian_estimate
    least = f" (the smallest bound of {found.runs})" if found.runs > 1 else ""
    table = Table(
        "epsilon", "found", "to compare with",
        title=f"One run{least}, {one.canaries} canaries, {one.present} of them in the data",
    )  # fmt: skip
    table.add_row(
        f"certified lower bound, {CONFIDENCE:.0%} confidence",
        _down(one.certified_epsilon),
        f"claimed: {_up(found.epsilon)}",
    )
    low, high = estimate.epsilon_interval
    table.add_row(
        "Gaussian estimate, not certified",
        f"{_up(estimate.epsilon)} ({_up(low)} to {_up(high)})",
        f"of a faultless run: {_up(estimate.plan_epsilon)}",
    )
    table.add_row(
        "  from the distance of scores, mu",
        f"{estimate.mu:.3f} ({estimate.interval[0]:.3f} to {estimate.interval[1]:.3f})",
        f"of a faultless run: {estimate.plan_mu:.3f}",
    )
    return table


def _attacks(found: Audit) -> Table:
    member, inversion = found.membership, found.inversion
    table = Table(
        "attack", "with the plan's noise", "at most, by the claim", "without noise",
        title="Attacks on made-up records",
    )  # fmt: skip
    table.add_row(
        f"membership by loss, {member.members} of {member.members + member.others}: AUC",
        *(f"{each.auc:.3f}" for each in (member.private, member.most, member.exposed)),
    )
    for at, rate in enumerate(FALSE_POSITIVES):
        table.add_row(
            f"  members found at {rate:.1%} false alarms",
            *(
                f"{each.true_positives[at]:.1%}"
                for each in (member.private, member.most, member.exposed)
            ),
        )
    noisy, clean = inversion.with_noise, inversion.without_noise
    table.add_row(
        "picture from one gradient: cosine", f"{noisy.cosine:.3f}", "", f"{clean.cosine:.3f}"
    )
    table.add_row("  PSNR", f"{noisy.psnr_db:.1f} dB", "", f"{clean.psnr_db:.1f} dB")
    return table


def _up(value: float) -> str:
    return upper(value, 3)


def _down(value: float) -> str:
    return f"{math.floor(value * 1000) / 1000:.3f}"
