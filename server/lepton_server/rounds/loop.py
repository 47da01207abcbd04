"""The round loop: introduce, then cohort -> ask -> collect -> sum -> step -> evaluate -> keep."""

import math
import time
from dataclasses import dataclass, field

from flwr.serverapp import Grid

from lepton_common.audit import AuditLog
from lepton_common.errors import LeptonError, MalformedMessage, QuorumNotMet
from lepton_common.identity.keys import SigningKey
from lepton_common.messages import TRAIN, Receipt, SiteFacts, read_update, train_content
from lepton_common.settings import Settings
from lepton_server.progress import OBSERVER, Observer, RoundReport
from lepton_server.rounds.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lepton_server.rounds.cohort import introduce, pick_cohort
from lepton_server.rounds.collect import collect
from lepton_server.rounds.evaluate import Evaluator
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.request import privacy_request, train_request
from lepton_server.run_folder import RunFolder, as_plain
from lepton_server.strategies.catalog import make_strategy


@dataclass
class _Gathered:
    """What came back in one round."""

    mean: ExactMean
    epsilon: dict[str, float] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


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
    evaluator = Evaluator(settings)
    strategy = make_strategy(settings, evaluator.layout)
    privacy = privacy_request(settings)
    if folder.checkpoint.exists():
        state = load_checkpoint(folder.checkpoint, evaluator.layout)
        strategy.restore(state.strategy)
    else:
        state = Checkpoint(round=0, model=evaluator.initial_vector())
    audit = _open_audit(folder)
    sites = introduce(grid, folder.path.name, settings.federation.round_timeout_s, audit)
    observer.on_start(state.round + 1, settings.rounds, [site.name for site in sites.values()])

    while state.round < settings.rounds and not observer.stop_requested:
        began, round_ = time.monotonic(), state.round + 1
        cohort = pick_cohort(sites, settings.cohort, settings.seed, round_)
        request = train_request(
            settings, folder.path.name, evaluator.layout, state, privacy, len(cohort)
        )
        gathered = _Gathered(
            ExactMean(evaluator.layout.size, _weights(cohort, settings), strategy.needs_each)
        )
        for node, answer in collect(
            grid, list(cohort), train_content(request, state.model), TRAIN,
            settings.federation.round_timeout_s,
        ):  # fmt: skip
            facts = cohort[node]
            try:
                if isinstance(answer, str):
                    gathered.failed[facts.name] = answer
                    continue
                update, _, receipt = read_update(answer, evaluator.layout.size)
                _check_receipt(receipt, folder.path.name, round_)
                gathered.mean.add(facts.name, update)
            except LeptonError as error:
                gathered.failed[facts.name] = type(error).__name__
            else:
                gathered.epsilon[facts.name] = receipt.epsilon
                gathered.heads[facts.name] = receipt.audit_head
        _check_quorum(gathered, len(cohort), settings.federation.quorum, round_)

        model = strategy.step(round_, state.model, gathered.mean)
        report = RoundReport(
            round=round_,
            rounds=settings.rounds,
            metrics=evaluator.evaluate(model),
            failed=dict(sorted(gathered.failed.items())),
            epsilon=dict(sorted(gathered.epsilon.items())) if settings.private else {},
            seconds=round(time.monotonic() - began, 3),
        )
        history = [*state.history, as_plain(report)]
        state = Checkpoint(round_, model, history, strategy.snapshot())
        # The witness comes first: a site's head must not be forgotten by a crash in between.
        audit.append(
            "round",
            {"round": round_, "model": request.model_digest, "heads": gathered.heads,
             "failed": report.failed},
        )  # fmt: skip
        save_checkpoint(folder.checkpoint, state)
        folder.write_metrics(history)
        evaluator.save_models(folder, state)
        observer.on_round(report)


def _open_audit(folder: RunFolder) -> AuditLog:
    folder.audit.parent.mkdir(parents=True, exist_ok=True)
    if not folder.server_key.exists():
        SigningKey.generate().save(folder.server_key)
    return AuditLog(folder.audit, SigningKey.load(folder.server_key), "server")


def _weights(cohort: dict[int, SiteFacts], settings: Settings) -> dict[str, int]:
    equal = settings.federation.weights == "equal"
    return {facts.name: 1 if equal else facts.public_size for facts in cohort.values()}


def _check_receipt(receipt: Receipt, run: str, round_: int) -> None:
    if (receipt.run, receipt.round) != (run, round_):
        raise MalformedMessage(
            f"A reply to round {round_} of {run} says it is for another round or run."
        )


def _check_quorum(gathered: _Gathered, asked: int, quorum: float, round_: int) -> None:
    needed, came = max(1, math.ceil(quorum * asked)), gathered.mean.count
    if came >= needed:
        return
    named = ", ".join(f"{site} ({error})" for site, error in sorted(gathered.failed.items())[:5])
    more = f" and {len(gathered.failed) - 5} more" if len(gathered.failed) > 5 else ""
    who = "all" if came == 0 else f"{asked - came} of the"
    raise QuorumNotMet(
        f"Round {round_} failed: {who} {asked} sites gave no usable answer: {named}{more}; "
        f"{needed} are needed (federation.quorum={quorum}). The last finished round is kept."
    )
