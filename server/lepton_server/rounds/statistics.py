"""A query for statistics: introduce, then one sum over all sites, and what can be told from it."""

import json
from typing import Any

from flwr.serverapp import Grid

from lepton_common.arrays import digest_of
from lepton_common.asking import privacy_request, statistics_query
from lepton_common.datasets.catalog import load_dataset
from lepton_common.durable import write_atomic
from lepton_common.errors import QuorumNotMet, SettingsError
from lepton_common.messages import PrivacyRequest, SiteFacts
from lepton_common.privacy.plan import PrivacyPlan, SharedNoise
from lepton_common.secagg.spec import least_survivors
from lepton_common.settings import Settings
from lepton_common.statistics import Cells, cells_of, column_names
from lepton_common.tasks.catalog import find_task
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.rounds.cohort import meet
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.figures import NoisyCells
from lepton_server.rounds.gathered import Gathered
from lepton_server.rounds.groups import gather_secure
from lepton_server.rounds.introduction import Introduction
from lepton_server.rounds.journal import SumJournal
from lepton_server.rounds.known import KnownSites
from lepton_server.rounds.loop import check_quorum, members_of, open_audit, proposal_of
from lepton_server.rounds.plain_round import gather_plain
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
    """
    if folder.statistics.exists():
        return
    data, query = settings.data, statistics_query(settings)
    dataset = load_dataset(find_task(settings.task).dataset, data.root, data.prepare)
    if query is None:
        raise SettingsError("statistics.asked=false: there is nothing to ask.")
    cells = cells_of(query, dataset)
    privacy = privacy_request(settings, cells.size)
    assert privacy is not None, "settings refuse statistics without"
    with KnownSites() as known:
        audit = open_audit(folder, settings, known)
        introduction = Introduction(
            grid, folder.path.name, settings.federation, audit, members_of(folder),
            proposal_of(folder),
        )  # fmt: skip
        present = meet(introduction, settings, known)
        OBSERVER.get(Observer()).on_start(1, 1, present.count)
        drawn = present.cohort(1)
        plan = _plan(privacy, settings, drawn.sites, cells)
        gathered = _gather(grid, settings, folder, drawn.sites, privacy, cells, known)
        gathered.failed |= drawn.failed
        audit.append("collected", {"round": 1, "model": cells.digest, "secagg": gathered.specs,
                                   "heads": gathered.heads, "ledgers": gathered.ledgers,
                                   "failed": gathered.failed})  # fmt: skip
        count = gathered.mean.count
        if not settings.secure:  # there it was checked before a sum was unmasked
            check_quorum(gathered.failed, count, settings.federation.quorum, 1)
        noise = plan.own_noise * count**0.5 / plan.clipping_norm
        total = gathered.mean.value().astype("f8") * (count / plan.clipping_norm)
        sums = NoisyCells.of(cells, total, noise)
        text = json.dumps({
            "run": folder.path.name,
            "task": settings.task,
            "unit": dataset.unit,
            "sites": {"answered": count, "failed": gathered.failed},
            "privacy": _cost(plan, gathered, settings),
            "people": sums.people(),
            "label": find_task(settings.task).label,
            "labels": sums.labels(),
            "range": [-1.0, 1.0],
            "features": sums.columns(column_names(cells, dataset)),
        }, indent=1)  # fmt: skip
        audit.append("statistics", {"file": digest_of(text.encode())})
        write_atomic(folder.statistics, text.encode())
        SumJournal(folder.sums).done()


def _plan(
    privacy: PrivacyRequest, settings: Settings, cohort: dict[int, SiteFacts], cells: Cells
) -> PrivacyPlan:
    """Returns the plan of each site's answer, as the sites make it.

    Raises:
        PlanError: no noise is certain, or the people may be more than the sum has room for.
        QuorumNotMet: fewer sites are there than a sum needs.
    """
    n, f = len(cohort), settings.colluders
    if not settings.secure:
        return privacy.plan("", 1)
    if n < f + 2:
        raise QuorumNotMet(
            f"{n} of the {f + 2} sites are there that a sum needs where {f} may collude; ask again "
            "when the others are back."
        )
    least = least_survivors(n, f, settings.federation.quorum)
    plan = privacy.plan("", 1, SharedNoise(n, least, f, cells.size))
    check_room(plan, cohort.values(), cells.blocks**-0.5)
    return plan


def _gather(
    grid: Grid,
    settings: Settings,
    folder: RunFolder,
    cohort: dict[int, SiteFacts],
    privacy: PrivacyRequest,
    cells: Cells,
    known: KnownSites,
) -> Gathered:
    run = folder.path.name
    weights = {facts.name: 1 for facts in cohort.values()}  # people count alike, wherever they are
    state = Checkpoint(round=0, model=cells.probe(run))
    ledgers = known.ledgers(weights)
    request = train_request(settings, run, cells.digest, state, privacy, weights, ledgers)
    if settings.secure:
        journal = SumJournal(folder.sums)
        return gather_secure(grid, settings, cohort, request, state.model, journal)
    mean = ExactMean(cells.size, weights, keep_each=False)
    timeout_s = settings.federation.round_timeout_s
    return gather_plain(grid, cohort, request, state.model, mean, timeout_s)


def _cost(plan: PrivacyPlan, gathered: Gathered, settings: Settings) -> dict[str, Any]:
    return {
        "mode": settings.privacy.mode,
        "secagg": settings.secagg.mode,
        "delta": plan.delta,
        "epsilon": max(gathered.epsilon.values()),
        "epsilon_of_sites": gathered.epsilon,
        "noise_multiplier": plan.noise_multiplier,
    }
