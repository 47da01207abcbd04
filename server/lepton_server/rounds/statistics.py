"""A query for statistics or figures: introduce, then one sum over all sites, and what it tells."""

import json
from dataclasses import replace
from typing import Any

from flwr.serverapp import Grid

from lepton_common.arrays import Vector, digest_of, pack
from lepton_common.asking import privacy_request, statistics_query
from lepton_common.durable import write_atomic
from lepton_common.errors import QuorumNotMet
from lepton_common.messages import PrivacyRequest, SiteFacts
from lepton_common.privacy.plan import PrivacyPlan, SharedNoise
from lepton_common.secagg.spec import least_survivors
from lepton_common.settings import Settings
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.rounds.cohort import meet
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.gathered import Gathered
from lepton_server.rounds.groups import gather_secure
from lepton_server.rounds.introduction import Introduction
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.known import KnownSites
from lepton_server.rounds.loop import check_quorum, members_of, open_audit, proposal_of
from lepton_server.rounds.plain_round import gather_plain
from lepton_server.rounds.questions import Layouts, question_of
from lepton_server.rounds.request import train_request
from lepton_server.rounds.room import check_room
from lepton_server.run_folder import RunFolder


def run_statistics(grid: Grid, settings: Settings, folder: RunFolder) -> None:
    """Asks all sites of a run once, and writes what they answered; asks nobody a second time.

    Raises:
        QuorumNotMet: too few sites answered.
        SitesRefused: what is asked is outside what the sites allow.
        PlanError: no noise reaches the epsilon that was asked for, or the sum has no room.
        SettingsError: a feature is asked for that there is not.
        RunNotFound: the run whose model shall be evaluated has none.
    """
    if folder.statistics.exists():
        return
    asked = question_of(settings, folder)
    privacy = privacy_request(settings, asked.cells.size)
    with KnownSites() as known:
        audit = open_audit(folder, settings, known)
        introduction = Introduction(
            grid, folder.path.name, settings.federation, audit, members_of(folder),
            proposal_of(folder),
        )  # fmt: skip
        present = meet(introduction, settings, known)
        OBSERVER.get(Observer()).on_start(1, 1, present.count)
        drawn = present.cohort(1)
        plan = _plan(privacy, settings, drawn.sites, asked.cells)
        sent = asked.sent(folder.path.name, private=privacy is not None)
        gathered = _gather(grid, settings, folder, drawn.sites, privacy, asked.cells, sent, known)
        gathered.failed |= drawn.failed
        audit.append("collected", {"round": 1, "model": digest_of(pack(sent).data),
                                   "secagg": gathered.specs, "heads": gathered.heads,
                                   "ledgers": gathered.ledgers,
                                   "failed": gathered.failed})  # fmt: skip
        count = gathered.mean.count
        if not settings.secure:  # there it was checked before a sum was unmasked
            check_quorum(gathered.failed, count, settings.federation.quorum, 1)
        total = gathered.mean.value().astype("f8") * count
        norm, noise = (plan.clipping_norm, plan.own_noise * count**0.5) if plan else (None, None)
        text = json.dumps({
            "run": folder.path.name,
            "task": settings.task,
            "unit": asked.dataset.unit,
            "sites": {"answered": count, "failed": gathered.failed},
            "privacy": _cost(plan, gathered, settings),
            **asked.told(total, norm, noise),
        }, indent=1)  # fmt: skip
        audit.append("statistics", {"file": digest_of(text.encode()), **asked.named})
        write_atomic(folder.statistics, text.encode())
        SumJournal(folder.sums).done()


def _plan(
    privacy: PrivacyRequest | None,
    settings: Settings,
    cohort: dict[int, SiteFacts],
    cells: Layouts,
) -> PrivacyPlan | None:
    """Returns the plan of each site's answer, as the sites make it; None without privacy.

    Raises:
        PlanError: no noise is certain, or the people may be more than the sum has room for.
        QuorumNotMet: fewer sites are there than a sum needs.
    """
    n, f = len(cohort), settings.colluders
    if settings.secure and n < f + 2:
        raise QuorumNotMet(
            f"{n} of the {f + 2} sites are there that a sum needs where {f} may collude; ask again "
            "when the others are back."
        )
    if privacy is None:
        return None
    if not settings.secure:
        return privacy.plan("", 1)
    least = least_survivors(n, f, settings.federation.quorum)
    plan = privacy.plan("", 1, SharedNoise(n, least, f, cells.size))
    check_room(plan, cohort.values(), cells.blocks**-0.5)
    return plan


def _gather(
    grid: Grid,
    settings: Settings,
    folder: RunFolder,
    cohort: dict[int, SiteFacts],
    privacy: PrivacyRequest | None,
    cells: Layouts,
    sent: Vector,
    known: KnownSites,
) -> Gathered:
    run = folder.path.name
    weights = {facts.name: 1 for facts in cohort.values()}  # people count alike, wherever they are
    state, ledgers = Checkpoint(round=0, model=sent), known.ledgers(weights)
    request = replace(
        train_request(settings, run, cells.digest, state, privacy, weights, ledgers),
        statistics=statistics_query(settings, cells.size),
    )
    if settings.secure:
        return gather_secure(grid, settings, cohort, request, sent, SumJournal(folder.sums))
    mean = ExactMean(cells.size, weights, keep_each=False)
    return gather_plain(grid, cohort, request, sent, mean, settings.federation.round_timeout_s)


def _cost(plan: PrivacyPlan | None, gathered: Gathered, settings: Settings) -> dict[str, Any]:
    how = {"mode": settings.privacy.mode, "secagg": settings.secagg.mode}
    if plan is None:
        return {**how, "delta": None, "epsilon": None}
    return {
        **how,
        "delta": plan.delta,
        "epsilon": max(gathered.epsilon.values()),
        "epsilon_of_sites": gathered.epsilon,
        "noise_multiplier": plan.noise_multiplier,
    }
