"""``lepton privacy``: what differential privacy costs, before any data is touched."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from lepton_cli.commands import privacy_audit

if TYPE_CHECKING:
    from lepton_common.privacy.plan import PrivacyPlan, SharedNoise

_JSON = typer.Option("--json", help="Print one JSON document, and nothing else.")
_DELTA = typer.Option(
    "--delta", help="Delta of the guarantee: well below 1 over the number of people."
)
_EPSILON_HELP = """What steps of DP-SGD spend, by three accountants.

Each step takes part of the records at random ([cyan]--sample-rate[/], Poisson), clips each
gradient, and adds Gaussian noise of [cyan]--noise-multiplier[/] times the clipping norm. All
three numbers are upper bounds on the same epsilon: [bold]pld[/] by privacy loss distributions,
[bold]rdp[/] by Rényi divergences, [bold]prv[/] by Opacus ("-" where it gives no answer). The
ledger of a site counts the smaller of pld and rdp, pld on a grid 10 times coarser.

  lepton privacy epsilon --sample-rate 0.01 --noise-multiplier 1 --steps 10000
"""
_PLAN_HELP = """The noise that a run needs for its epsilon, and how epsilon grows over its rounds.

  lepton privacy plan --epsilon 3 --rounds 50 --batch 256 --public-size 4096

Give [cyan]--noise-multiplier[/] instead of [cyan]--epsilon[/] to ask what epsilon a noise buys.

The sample rate is the batch over the site's [bold]public[/] size class, a power of two: the true
number of records is private, and no noise may depend on it. A site that holds more than its class
says gets larger batches, not more epsilon. Count the rounds that crashes may cost
(privacy.spare_rounds) into [cyan]--rounds[/]. For privacy=site there is one step a round over
all of each site's data, so ask 'lepton privacy epsilon --sample-rate 1'.
"""

app = typer.Typer(
    help="Plan differential privacy: epsilon, noise and rounds, from public values only.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)
app.command("audit", help=privacy_audit.HELP)(privacy_audit.command)


@app.callback()
def _privacy() -> None:
    """Makes `privacy` a group of commands, whatever their number."""


@app.command("epsilon", help=_EPSILON_HELP)
def epsilon_command(
    sample_rate: Annotated[
        float, typer.Option("--sample-rate", help="Chance of a record to be in a step, to 1.")
    ],
    noise_multiplier: Annotated[
        float, typer.Option("--noise-multiplier", help="Noise deviation over the clipping norm.")
    ],
    steps: Annotated[int, typer.Option("--steps", help="How many steps, over all rounds.")],
    delta: Annotated[float, _DELTA] = 1e-5,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Prints three bounds; `_EPSILON_HELP` is what the user reads."""
    from lepton_common.privacy.accounting import bounds
    from lepton_common.privacy.events import SampledGaussian

    _check(
        sample_rate=(sample_rate, 1e-9, 1.0),
        noise_multiplier=(noise_multiplier, 0.1, 1e9),
        steps=(steps, 1, 10**7),
        delta=(delta, 1e-300, 1 - 1e-9),
    )
    found = bounds([SampledGaussian(sample_rate, noise_multiplier, steps)], delta)
    if as_json:
        print(json.dumps(found))
        return
    table = Table("accountant", "epsilon, at most", title=f"{steps} steps, at delta {delta:g}")
    for name, value in found.items():
        table.add_row(name, "-" if value is None else _up(value))
    Console(highlight=False).print(table)


@app.command("plan", help=_PLAN_HELP)
def plan_command(
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of the run.")],
    batch: Annotated[int, typer.Option("--batch", help="Records expected in a step.")],
    public_size: Annotated[
        int, typer.Option("--public-size", help="The site's public size; its class is taken.")
    ],
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Target of the run.")] = None,
    noise_multiplier: Annotated[
        float | None, typer.Option("--noise-multiplier", help="In place of --epsilon.")
    ] = None,
    delta: Annotated[float, _DELTA] = 1e-5,
    local_steps: Annotated[int, typer.Option("--local-steps", help="Steps in a round.")] = 1,
    mode: Annotated[
        Literal["record", "distributed"],
        typer.Option("--mode", help="record: DP-SGD at each site; distributed: noise is shared."),
    ] = "record",
    sites: Annotated[int, typer.Option("--sites", help="Sites in a round; distributed.")] = 10,
    colluders: Annotated[
        int | None,
        typer.Option("--colluders", help="Sites that may collude; distributed. (sites - 1) / 3."),
    ] = None,
    weights: Annotated[
        int, typer.Option("--weights", help="Weights in the model, about; distributed.")
    ] = 100_000,
    plot: Annotated[
        Path | None, typer.Option("--plot", help="Draw epsilon over the rounds to this PNG.")
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Prints a plan; `_PLAN_HELP` is what the user reads."""
    from lepton_common.errors import SettingsError
    from lepton_common.privacy.plan import PrivacyPlan, calibrated_noise, public_size_class

    if (epsilon is None) == (noise_multiplier is None):
        raise SettingsError("Give either --epsilon or --noise-multiplier.")
    _check(
        rounds=(rounds, 1, 10**6),
        batch=(batch, 1, 2**40),
        public_size=(public_size, 1, 2**40),
        epsilon=(epsilon, 1e-3, 1e3),
        noise_multiplier=(noise_multiplier, 0.1, 1e9),
        delta=(delta, 1e-300, 1 - 1e-9),
        local_steps=(local_steps, 1, 10**6),
        steps=(rounds * local_steps, 1, 10**7),
        sites=(sites, 2, 1000),
        colluders=(colluders, 0, 1000),
        weights=(weights, 1, 10**10),
    )
    if mode == "distributed" and sites < (colluders or 0) + 2:
        raise SettingsError(
            f"--colluders {colluders} needs {(colluders or 0) + 2} sites at least, not {sites}."
        )
    size = public_size_class(public_size)
    shared = _shared(sites, colluders, weights) if mode == "distributed" else None
    rate, steps = min(1.0, batch / size), rounds * local_steps
    noise = noise_multiplier or calibrated_noise(
        target_epsilon=epsilon or 0.0, delta=delta, sample_rate=rate, max_steps=steps, shared=shared
    )
    planned = PrivacyPlan(
        "row", delta, rate, noise, 1.0, local_steps, steps, min(batch, size), shared
    )
    plan = {
        "mode": mode,
        "delta": delta,
        "public_size": size,
        "sample_rate": rate,
        "expected_batch": min(batch, size),
        "rounds": rounds,
        "local_steps": local_steps,
        **_spending(planned, rounds),
    }
    if plot is not None:
        if not plot.parent.is_dir() or plot.suffix.lower() != ".png":
            raise SettingsError(f"--plot {plot} must be a .png file in a folder that is there.")
        _draw(plan, epsilon, plot)
    if as_json:
        print(json.dumps(plan))
        return
    _print_plan(plan)


def _shared(sites: int, colluders: int | None, weights: int) -> "SharedNoise":
    """Returns who shares the noise of a round that all sites answer, as a run would have it."""
    from lepton_common.privacy.plan import SharedNoise
    from lepton_common.secagg.spec import default_colluders, least_survivors

    f = default_colluders(sites) if colluders is None else colluders
    return SharedNoise(sites, least_survivors(sites, f), f, weights)


def _spending(plan: "PrivacyPlan", rounds: int) -> dict[str, Any]:
    """Returns the noise, and what is spent after each tenth of the rounds, as a site counts it."""
    from lepton_common.privacy.accounting import epsilon
    from lepton_common.privacy.plan import shared_event

    curve = [
        {"round": done, "steps": done * plan.steps_per_round, "epsilon": plan.epsilon(done)}
        for done in sorted({-(-rounds * tenth // 10) for tenth in range(1, 11)})
    ]
    found = {"noise_multiplier": plan.noise_multiplier, "epsilon": curve[-1]["epsilon"],
             "curve": curve}  # fmt: skip
    if plan.shared is not None:
        own = shared_event(plan.sample_rate, plan.noise_multiplier, rounds, plan.shared, 1)
        found["shared"] = {
            **asdict(plan.shared),
            "own_noise_multiplier": plan.own_noise / plan.clipping_norm,
            "epsilon_without_secure_aggregation": epsilon((own,), plan.delta),
        }
    return found


def _print_plan(plan: dict[str, Any]) -> None:
    console = Console(highlight=False)
    console.print(
        f"noise multiplier [bold]{plan['noise_multiplier']:.4f}[/], sample rate "
        f"[bold]{plan['sample_rate']:.6g}[/], expected batch {plan['expected_batch']} of a site of "
        f"the public size class {plan['public_size']}"
    )
    table = Table("round", "steps", "epsilon, at most", title=f"Spent, at delta {plan['delta']:g}")
    for row in plan["curve"]:
        table.add_row(str(row["round"]), str(row["steps"]), _up(row["epsilon"]))
    console.print(table)
    if "shared" in plan:
        shared = plan["shared"]
        console.print(
            f"Of {shared['sites']} sites {shared['sites'] - shared['survivors']} may drop out and "
            f"{shared['colluders']} collude. Each adds [bold]"
            f"{shared['own_noise_multiplier']:.4f}[/] times the clipping norm itself; were secure "
            f"aggregation broken, that would leave epsilon "
            f"{_up(shared['epsilon_without_secure_aggregation'])}."
        )
    shares = (
        f"sites={plan['shared']['sites']} secagg.colluders={plan['shared']['colluders']} "
        if "shared" in plan
        else ""
    )
    console.print(
        f"In a run: privacy={plan['mode']} {shares}rounds={plan['rounds']} "
        f"privacy.epsilon={_up(plan['epsilon'])} privacy.delta={plan['delta']:g} "
        f"privacy.sample_rate={plan['sample_rate']:.6g} privacy.spare_rounds=0 "
        f"train.local_steps={plan['local_steps']}",
        soft_wrap=True,
    )


def _draw(plan: dict[str, Any], target: float | None, path: Path) -> None:
    """Draws epsilon over the rounds, as `lepton_cli.pictures` draws that of a run."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 3.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    rounds = [row["round"] for row in plan["curve"]]
    spent = [row["epsilon"] for row in plan["curve"]]
    label = f"noise multiplier {plan['noise_multiplier']:.3g}"
    axes.plot(rounds, spent, color="#1f5fa8", linewidth=2.0, marker="o", markersize=3, label=label)
    if target is not None:
        axes.axhline(target, color="#c0392b", linestyle="--", label="target")
    axes.set_xlabel("round")
    axes.set_ylabel(f"epsilon at delta {plan['delta']:g}")
    axes.set_ylim(bottom=0)
    axes.legend(loc="lower right", frameon=False)
    figure.savefig(path, dpi=130, format="png")


def _check(**values: tuple[float | None, float, float]) -> None:
    """Refuses values that are given and out of bounds.

    Raises:
        SettingsError: with all of them.
    """
    from lepton_common.errors import SettingsError

    faults = [
        f"--{name.replace('_', '-')} {value:g} must lie in [{low:g}, {high:g}]."
        for name, (value, low, high) in values.items()
        if value is not None and not low <= value <= high
    ]
    if faults:
        raise SettingsError(faults)


def _up(value: float) -> str:
    """Returns an epsilon to 4 decimals, never rounded down."""
    from lepton_cli.summary import upper

    return upper(value, 4)


@app.command("verify")
def verify_command(
    site: Annotated[Path, typer.Argument(help="A site's folder, with ledger.db and signing.pem.")],
    head: Annotated[
        str | None, typer.Option("--head", help="An entry that someone has noted: must be there.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="The site's public key, where its signing.pem is not at hand."),
    ] = None,
    as_json: Annotated[bool, _JSON] = False,
) -> None:
    """Verify a site's privacy ledger: signatures, order, people, and what each data set spent."""
    from lepton_cli.desk.budgets import spent_by_data
    from lepton_client.site import KEY_FILE, LEDGER_FILE
    from lepton_common.chain import verify_heads
    from lepton_common.errors import AuditError, LedgerInvalid, LedgerRolledBack
    from lepton_common.identity.keys import read_public
    from lepton_common.privacy.ledger_file import read_ledger

    path = site / LEDGER_FILE
    if not path.exists():
        raise LedgerInvalid(
            f"There is no ledger at {path}: give a site's folder (RUN/sites/NAME in a simulation); "
            "a site that never charged anything has none."
        )
    try:
        public = key or read_public(site / KEY_FILE)
        contents = read_ledger(path, public)
        if not contents.records:
            raise LedgerInvalid(
                f"{path} holds no entry: it was emptied, or a crash came while it was made."
            )
        verify_heads(path, contents.records, [head] if head else [])
    except (OSError, ValueError) as error:
        raise LedgerInvalid(f"Cannot read the site's key: {error}; give --key.") from error
    except AuditError as error:
        raise LedgerRolledBack(str(error)) from error
    charges = contents.charges
    released = sum(record.kind == "release" for record in contents.records)
    rows = spent_by_data(contents)
    if as_json:
        document = {"entries": len(contents.records), "charges": len(charges),
                    "released": released, "head": contents.head,
                    "data": [asdict(row) for row in rows]}  # fmt: skip
        print(json.dumps(document))
        return
    table = Table(
        "data", "version", "charges", "epsilon", "delta", title=f"Privacy ledger of {site}"
    )
    for row in rows:
        table.add_row(
            row.data, row.version[:12], str(row.charges), f"{row.epsilon:.3f}", f"{row.delta:g}"
        )
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"[green]Verified[/]: {len(contents.records)} entries are signed and in place; "
        f"{len(charges)} charges, {released} of them released; any other stays spent."
    )
    console.print(
        "A cut at its end shows only against an entry that someone has noted (--head), or by "
        "'lepton audit verify' of the whole run. "
        f"The newest entry, to note: {contents.head}",
        soft_wrap=True,
    )
