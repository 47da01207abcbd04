"""The round loop: introduce, then cohort -> ask -> collect -> sum -> step -> evaluate -> keep."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.arrays import digest_of
from lepton_common.audit import AuditLog
from lepton_common.errors import LeptonError, MalformedMessage, QuorumNotMet, RunNotResumable
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import (
    TRAIN,
    Receipt,
    SiteFacts,
    TrainRequest,
    read_update,
    train_content,
)
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_server.progress import OBSERVER, Observer, RoundReport
from lepton_server.rounds.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lepton_server.rounds.cohort import introduce, pick_cohort
from lepton_server.rounds.collect import collect
from lepton_server.rounds.evaluate import Evaluator
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.request import privacy_request, train_request
from lepton_server.run_folder import RunFolder, as_plain
from lepton_server.strategies.catalog import make_strategy


def run_rounds(grid: Grid, settings: Settings, folder: RunFolder) -> None:
    """Runs, or continues, all rounds of a federation.

    Every finished round is on disk before the next begins. After a crash the same call goes on
    from the last finished round, and without DP ends in the same model as an unbroken run.

    Raises:
        QuorumNotMet: too few sites answered, or all failed; the last finished round is kept.
        PlanError: no noise reaches the epsilon that was asked for.
        CheckpointUnreadable: the checkpoint is damaged.
    """
    observer = OBSERVER.get(Observer())
    run, federation = folder.path.name, settings.federation
    evaluator = Evaluator(settings)
    strategy = make_strategy(settings, evaluator.layout)
    privacy = privacy_request(settings)
    state = Checkpoint(round=0, model=evaluator.initial_vector())
    audit = _open_audit(folder, settings)
    if folder.checkpoint.exists():
        state = load_checkpoint(folder.checkpoint, evaluator.layout)
        strategy.restore(state.strategy)
        _publish(folder, evaluator, state)
    sites = introduce(grid, run, federation.round_timeout_s, audit)
    observer.on_start(state.round + 1, settings.rounds, [site.name for site in sites.values()])

    while state.round < settings.rounds and not observer.stop_requested:
        began, round_ = time.monotonic(), state.round + 1
        cohort = pick_cohort(sites, settings.cohort, settings.seed, round_)
        request = train_request(settings, run, evaluator.layout, state, privacy, len(cohort))
        mean = ExactMean(state.model.size, _weights(cohort, settings), strategy.needs_each)
        content = train_content(request, state.model)
        answers = collect(grid, list(cohort), content, TRAIN, federation.round_timeout_s)
        gathered = _add_up(answers, cohort, request, mean)
        # The witness comes first: a released update is on record whatever becomes of the round.
        audit.append("collected", {"round": round_, "model": request.model_digest,
                                   "heads": gathered.heads, "failed": gathered.failed})  # fmt: skip
        _check_quorum(gathered.failed, mean.count, federation.quorum, round_)

        model = strategy.step(round_, state.model, mean)
        report = RoundReport(
            round=round_,
            rounds=settings.rounds,
            metrics=evaluator.evaluate(model),
            failed=gathered.failed,
            epsilon=gathered.epsilon if settings.private else {},
            seconds=round(time.monotonic() - began, 3),
        )
        state = Checkpoint(round_, model, [*state.history, as_plain(report)], strategy.snapshot())
        written = evaluator.model_file(run, state)
        audit.append("round", {"round": round_, "metrics": report.metrics,
                               "model_file": digest_of(written)})  # fmt: skip
        save_checkpoint(folder.checkpoint, state)
        _publish(folder, evaluator, state)
        observer.on_round(report)


@dataclass
class _Gathered:
    """What the sites of one cohort said, by site name."""

    epsilon: dict[str, float] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def _add_up(
    answers: Iterable[tuple[int, RecordDict | str]],
    cohort: dict[int, SiteFacts],
    request: TrainRequest,
    mean: ExactMean,
) -> _Gathered:
    """Adds each usable update to ``mean`` as it comes; names the sites that gave none."""
    gathered = _Gathered()
    for node, answer in answers:
        site = cohort[node].name
        if isinstance(answer, str):
            gathered.failed[site] = answer
            continue
        try:
            update, _, receipt = read_update(answer, mean.size)
            _check_receipt(receipt, request, cohort[node])
            mean.add(site, update)
        except LeptonError as error:
            gathered.failed[site] = type(error).__name__
        else:
            gathered.epsilon[site] = receipt.epsilon
            gathered.heads[site] = receipt.audit_head
    # In order of names, so that a report does not depend on who answered first.
    return _Gathered(*(dict(sorted(part.items())) for part in vars(gathered).values()))


def _check_receipt(receipt: Receipt, request: TrainRequest, site: SiteFacts) -> None:
    """Holds a receipt against what was asked, and its epsilon against what that must cost.

    Raises:
        MalformedMessage: it is for another round, run or plan, or claims to have spent less.
    """
    asked = request.privacy
    plan = asked.plan(site.unit, site.public_size) if asked else None
    fits = (receipt.run, receipt.round) == (request.run, request.round)
    if plan is None:
        fits = fits and receipt.plan is None
    else:
        least = plan.epsilon(plan.steps_per_round)
        fits = fits and receipt.plan == plan.digest and receipt.epsilon >= 0.999 * least
    if not fits:
        raise MalformedMessage("A receipt does not fit the round, run or plan it answers.")


def _publish(folder: RunFolder, evaluator: Evaluator, state: Checkpoint) -> None:
    """Makes metrics and models those of the checkpoint, also where a crash came in between."""
    folder.write_metrics(state.history)
    evaluator.save_models(folder, state)


def _open_audit(folder: RunFolder, settings: Settings) -> AuditLog:
    """Opens the server's log, which holds the run to the configuration it began with.

    Raises:
        RunNotResumable: the configuration is another one.
    """
    folder.audit.parent.mkdir(parents=True, exist_ok=True)
    if not folder.server_key.exists():
        SigningKey.generate().save(folder.server_key)
    audit = AuditLog(folder.audit, SigningKey.load(folder.server_key), "server")
    config = digest_of(to_json(settings).encode())
    began = next((r.body["config"] for r in audit.records if r.kind == "run"), None)
    if began is None:
        audit.append("run", {"run": folder.path.name, "config": config})
    elif began != config:
        raise RunNotResumable(
            "The configuration is not the one this run began with; restore it, or start anew."
        )
    return audit


def _weights(cohort: dict[int, SiteFacts], settings: Settings) -> dict[str, int]:
    equal = settings.federation.weights == "equal"
    return {facts.name: 1 if equal else facts.public_size for facts in cohort.values()}


def _check_quorum(failed: dict[str, str], came: int, quorum: float, round_: int) -> None:
    asked = came + len(failed)
    needed = max(1, math.ceil(quorum * asked))
    if came >= needed:
        return
    named = ", ".join(f"{site} ({error})" for site, error in list(failed.items())[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    who = "all" if came == 0 else f"{len(failed)} of the"
    raise QuorumNotMet(
        f"Round {round_} failed: {who} {asked} sites gave no usable answer: {named}{more}; "
        f"{needed} are needed (federation.quorum={quorum}). The last finished round is kept."
    )
