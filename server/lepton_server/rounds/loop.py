"""The round loop: introduce, then cohort -> ask -> collect -> sum -> step -> evaluate -> keep."""

import heapq
import math
import time
from dataclasses import replace

from flwr.serverapp import Grid

from lepton_common.arrays import digest_of
from lepton_common.asking import privacy_request, weights_of
from lepton_common.audit import AuditLog
from lepton_common.errors import QuorumNotMet, RunNotResumable
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member, read_roster_files
from lepton_common.settings import Settings
from lepton_common.strict import to_json
from lepton_server.progress import OBSERVER, Observer, RoundReport
from lepton_server.rounds.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from lepton_server.rounds.clip_scale import ClipScale
from lepton_server.rounds.cohort import meet
from lepton_server.rounds.evaluate import Evaluator
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.groups import gather_secure
from lepton_server.rounds.introduction import Introduction
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.known import KnownSites
from lepton_server.rounds.parked import park
from lepton_server.rounds.plain_round import gather_plain
from lepton_server.rounds.refusal import refusal
from lepton_server.rounds.request import train_request
from lepton_server.run_folder import RunFolder, as_plain
from lepton_server.strategies.catalog import make_strategy

_MOST_REPORTED = 100  # sites of which a round's report has each


def run_rounds(grid: Grid, settings: Settings, folder: RunFolder) -> None:
    """Runs, or continues, all rounds of a federation.

    Every finished round is on disk before the next begins. After a crash the same call goes on
    from the last finished round, and without DP ends in the same model as an unbroken run.

    Raises:
        QuorumNotMet: too few sites answered, or all failed; the last finished round is kept.
        PlanError: no noise reaches the epsilon that was asked for.
        CheckpointUnreadable: the checkpoint is damaged.
    """
    with KnownSites() as known:
        _run_rounds(grid, settings, folder, known)


def _run_rounds(grid: Grid, settings: Settings, folder: RunFolder, known: KnownSites) -> None:
    observer = OBSERVER.get(Observer())
    run, federation = folder.path.name, settings.federation
    evaluator = Evaluator(settings)
    strategy = make_strategy(settings, evaluator.layout)
    privacy = privacy_request(settings, evaluator.layout.size)
    scale = ClipScale(settings.privacy.clip_quantile)
    state = Checkpoint(round=0, model=evaluator.initial_vector())
    audit = open_audit(folder, settings, known)
    if folder.checkpoint.exists():
        state = load_checkpoint(folder.checkpoint, evaluator.layout)
        strategy.restore(state.strategy)
        scale.restore(state.strategy)
        _publish(folder, evaluator, state)
    state = replace(state, model=park(state.model, folder.path))
    journal = SumJournal(folder.sums)
    introduction = Introduction(
        grid, run, federation, audit, members_of(folder), proposal_of(folder)
    )
    present = meet(introduction, settings, known)
    observer.on_start(state.round + 1, settings.rounds, present.count)

    while state.round < settings.rounds and not observer.stop_requested:
        began, round_ = time.monotonic(), state.round + 1
        drawn = present.cohort(round_)
        cohort, least = drawn.sites, settings.colluders + 2
        observer.on_cohort(round_, [facts.public_size for facts in cohort.values()])
        if settings.secure and len(cohort) < least:
            raise QuorumNotMet(
                f"Round {round_}: {len(cohort)} of the {least} sites are there that a sum needs "
                f"where {settings.colluders} may collude; resume when the others are back."
            )
        weights = weights_of(cohort.values(), settings)
        strategy.check_room(cohort.values())
        ledgers = known.ledgers(present.hosts.names.values() if present.hosts else weights)
        request = train_request(
            settings, run, evaluator.layout.digest, state, privacy, weights, ledgers, scale.value
        )
        if settings.secure:
            gathered = gather_secure(grid, settings, cohort, request, state.model, journal)
        else:
            size = request.answered(state.model.size)
            mean = ExactMean(size, weights, strategy.needs_each, folder.path)
            if present.hosts:
                gathered = present.hosts.gather(cohort, request, state.model, mean)
            else:
                timeout_s = federation.round_timeout_s
                gathered = gather_plain(grid, cohort, request, state.model, mean, timeout_s)
            del mean
        gathered.failed |= drawn.failed
        # The witness comes first: a released update is on record whatever becomes of the round.
        audit.append("collected", {"round": round_, "model": request.model_digest,
                                   "secagg": gathered.specs, "heads": gathered.heads,
                                   "ledgers": gathered.ledgers,
                                   "failed": gathered.failed})  # fmt: skip
        if not settings.secure:  # there it was checked before a sum was unmasked
            check_quorum(gathered.failed, gathered.mean.count, federation.quorum, round_)

        model = park(strategy.step(round_, state.model, gathered.mean), folder.path)
        del gathered.mean  # files are made next, which need room
        scale.learn(gathered.metrics)
        kept = strategy.snapshot() | scale.snapshot()
        after = Checkpoint(round_, model, state.history, kept)
        report = RoundReport(
            round=round_,
            rounds=settings.rounds,
            metrics=evaluator.evaluate(after.result) | gathered.metrics,
            failed=gathered.failed,
            epsilon=_most_spent(gathered.epsilon) if settings.private else {},
            seconds=round(time.monotonic() - began, 3),
        )
        state = replace(after, history=[*state.history, as_plain(report)])
        written = digest_of(evaluator.model_file(run, state))
        body = {"round": round_, "metrics": report.metrics, "model_file": written}
        audit.append("round", body)
        save_checkpoint(folder.checkpoint, state)
        journal.done()
        _publish(folder, evaluator, state)
        observer.on_round(report)


def _most_spent(epsilon: dict[str, float]) -> dict[str, float]:
    """Returns what sites have spent; of a large cohort, of the ten that have spent most.

    Reports are kept from round to round, so they must not grow with the cohort.
    """
    if len(epsilon) <= _MOST_REPORTED:
        return epsilon
    return dict(heapq.nlargest(10, epsilon.items(), key=lambda item: item[1]))


def _publish(folder: RunFolder, evaluator: Evaluator, state: Checkpoint) -> None:
    """Makes metrics and models those of the checkpoint, also where a crash came in between."""
    folder.write_metrics(state.history)
    evaluator.save_models(folder, state)


def open_audit(folder: RunFolder, settings: Settings, known: KnownSites) -> AuditLog:
    """Opens the server's log, which holds the run to the configuration it began with.

    ``known`` reads along; the log itself grows on disk only.

    Raises:
        RunNotResumable: the configuration is another one.
    """
    folder.audit.parent.mkdir(parents=True, exist_ok=True)
    if not folder.server_key.exists():
        SigningKey.generate().save(folder.server_key)
    audit = AuditLog(folder.audit, SigningKey.load(folder.server_key), "server", known.read)
    config = digest_of(to_json(settings).encode())
    if known.config is None:
        proposal = proposal_of(folder)
        asked = {} if proposal is None else {"proposal": digest_of(proposal.encode())}
        audit.append("run", {"run": folder.path.name, "config": config, **asked})
    elif known.config != config:
        raise RunNotResumable(
            "The configuration is not the one this run began with; restore it, or start anew."
        )
    return audit


def members_of(folder: RunFolder) -> list[Member]:
    """Returns the federation's sites as the partners signed them; none where there is no roster.

    Raises:
        RosterInvalid: it is damaged, or too few partners have signed it.
    """
    if not folder.roster.exists():
        return []
    return read_roster_files(folder.roster, folder.roster_root).members


def proposal_of(folder: RunFolder) -> str | None:
    """Returns the run as its lead has signed it; None in a simulation."""
    return folder.proposal.read_text(encoding="utf-8") if folder.proposal.exists() else None


def check_quorum(failed: dict[str, str], came: int, quorum: float, round_: int) -> None:
    """Checks that enough sites answered.

    Raises:
        SitesRefused: all who did not answer refused.
        QuorumNotMet: too few did.
    """
    asked = came + len(failed)
    needed = max(1, math.ceil(quorum * asked))
    if came >= needed:
        return
    if refused := refusal(round_, failed):
        raise refused
    named = ", ".join(f"{site} ({error})" for site, error in list(failed.items())[:5])
    more = f" and {len(failed) - 5} more" if len(failed) > 5 else ""
    who = "all" if came == 0 else f"{len(failed)} of the"
    raise QuorumNotMet(
        f"Round {round_} failed: {who} {asked} sites gave no usable answer: {named}{more}; "
        f"{needed} are needed (federation.quorum={quorum}). The last finished round is kept."
    )
