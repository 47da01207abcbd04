"""The runs that were proposed to a site, each with what becomes of it here and why."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from lepton_cli.desk.budgets import Budget, budgets_of_run
from lepton_cli.desk.folder import Desk, trainer_of
from lepton_client import consent
from lepton_client.trainer import Wanted
from lepton_common.asking import (
    masked_sum,
    privacy_request,
    recipe,
    shared_noise,
    statistics_query,
)
from lepton_common.errors import (
    BudgetSpent,
    ConsentRefused,
    LeptonError,
    PlanError,
    RunNotFound,
)
from lepton_common.messages import TrainRequest
from lepton_common.models.tree_form import least_weights
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.proposal import Proposal, read_proposal
from lepton_common.settings import Settings
from lepton_common.tasks.catalog import find_task
from lepton_common.tasks.figures import statistics_of

State = Literal["waits", "approved", "refused", "automatic", "beyond the policy"]
_NO_DIGEST = "0" * 64


@dataclass(frozen=True)
class Asked:
    """One proposed run.

    Attributes:
        run: its name.
        text: the proposal, as its lead has signed it.
        proposal: the same, read; None where it is not good.
        settings: its configuration; None where it has faults.
        state: what becomes of it here.
        against: what forbids it, each by the name of an error and a sentence.
    """

    run: str
    text: str
    proposal: Proposal | None
    settings: Settings | None
    state: State
    against: list[LeptonError]

    def row(self) -> dict[str, Any]:
        """Returns what a table, or a program, is told of it."""
        settings = self.settings
        row: dict[str, Any] = {
            "run": self.run,
            "state": self.state,
            "reasons": [{"name": type(e).__name__, "said": str(e)} for e in self.against],
        }
        if self.proposal is not None:
            row |= {"by": self.proposal.by, "study": self.proposal.study}
        if settings is not None:
            row |= {
                "task": settings.task,
                "model": _asked_about(settings),
                "rounds": settings.rounds,
                "sites": settings.cohort,
                "privacy": settings.privacy.mode,
                "epsilon": settings.privacy.epsilon if settings.private else None,
                "delta": settings.privacy.delta if settings.private else None,
                "secure_aggregation": settings.secure,
            }
        return row


@dataclass(frozen=True)
class Cost:
    """What a run would take of the site's budgets.

    Attributes:
        plan: its privacy plan here.
        rounds: how many it may still take, spare ones for crashes included.
        taken: how many it was charged already.
        budgets: before and after all of them.
    """

    plan: PrivacyPlan
    rounds: int
    taken: int
    budgets: list[Budget]


def _asked_about(settings: Settings) -> str:
    """Returns what a run is about, in a word or two."""
    asked = settings.statistics
    if not asked.asked:
        return settings.model
    return "statistics" if asked.evaluates is None else f"figures of {settings.model}"


def all_asked(desk: Desk) -> list[Asked]:
    """Returns all runs that were proposed, by name."""
    return [asked(desk, run) for run in desk.proposals.names()]


def asked(desk: Desk, run: str) -> Asked:
    """Returns a run that was proposed.

    Raises:
        RunNotFound: there is no such.
    """
    text = desk.proposals.text(run)
    if text is None:
        raise RunNotFound(f"No run {run} was proposed; 'lepton site requests' tells them.")
    return judged(desk, run, text)


def judged(desk: Desk, run: str, text: str) -> Asked:
    """Returns what becomes of a proposal here, under a run's name."""
    try:
        proposal = read_proposal(text, desk.roster)
    except LeptonError as error:
        return Asked(run, text, None, None, "beyond the policy", [error])
    try:
        settings = proposal.parsed()
    except LeptonError:
        settings = None
    against: list[LeptonError] = list(desk.proposals.objections(proposal, desk.file, desk.roster))
    if settings is not None and not against:
        against = _beyond_rounds(desk, settings)
    verdict = desk.proposals.verdict(run)
    if verdict == "refused":
        refusal = ConsentRefused("The operator of this site has refused the run.")
        return Asked(run, text, proposal, settings, "refused", [refusal, *against])
    if against:
        return Asked(run, text, proposal, settings, "beyond the policy", against)
    assert desk.file.launch is not None, "who has proposals has rules for them"
    unsaid: State = "automatic" if desk.file.launch.approval == "automatic" else "waits"
    return Asked(run, text, proposal, settings, verdict or unsaid, [])


def first_request(settings: Settings, run: str, site: str, size: int) -> TrainRequest:
    """Returns what the run asks in round 1, as far as it is known before there is a model."""
    others = (f"other-{index}" for index in range(1, settings.cohort))
    return TrainRequest(
        run=run,
        round=1,
        task=settings.task,
        model=settings.model,
        prepare=settings.data.prepare,
        cohort=settings.cohort,
        layout=_NO_DIGEST,
        model_digest=_NO_DIGEST,
        recipe=recipe(settings, 1),
        privacy=privacy_request(settings, size),
        masked=masked_sum(settings, dict.fromkeys([site, *others], 1)) if settings.secure else None,
        ledger_heads={},
        statistics=statistics_query(settings),
    )


def cost(desk: Desk, found: Asked) -> Cost | None:
    """Returns what a run would take of the site's budgets; None where it takes nothing of them.

    Raises:
        LeptonError: the data that tells the model's size cannot be read, or no plan is to be had.
    """
    settings = found.settings
    if settings is None or not settings.private:
        return None
    plan = _plan(desk, settings, _size(desk, settings) if settings.shares_noise else 1)
    taken = desk.ledger.steps(found.run) // plan.steps_per_round
    rounds = max(plan.max_steps // plan.steps_per_round - taken, 0)
    budget = desk.proposals.budget(found.run, desk.roster)
    return Cost(plan, rounds, taken, budgets_of_run(desk, found.run, plan, budget, rounds))


def too_dear(found: Cost) -> BudgetSpent | None:
    """Returns the error that a run would end with before its last round, for want of budget."""
    over = [budget for budget in found.budgets if not budget.holds]
    if not over:
        return None
    budget = over[0]
    return BudgetSpent(
        f"All of it would bring the data to epsilon {budget.after:.3f} of at most {budget.most:g} "
        f"{budget.what}: this site would drop out before its end."
    )


def _beyond_rounds(desk: Desk, settings: Settings) -> list[LeptonError]:
    """Returns what would be refused of each round, of a run that may begin."""
    # Of the model, whose true size only the data tells: it counts for next to nothing.
    size = least_weights(settings.model)
    try:
        request = first_request(settings, "run", desk.file.name, size)
        consent.check_request(request, desk.file, masked=settings.secure)
        if settings.private:
            consent.check_own_noise(_plan(desk, settings, size), desk.file.policy)
    except (ConsentRefused, PlanError) as error:
        return [error]
    return []


def _plan(desk: Desk, settings: Settings, size: int) -> PrivacyPlan:
    privacy = privacy_request(settings, size)
    assert privacy is not None, "the run is private"
    shared = shared_noise(settings, size)
    return privacy.plan(desk.file.data.unit, desk.file.public_size, shared)


def _size(desk: Desk, settings: Settings) -> int:
    """Returns the number of weights of the run's model on the site's data, built by the trainer.

    Of statistics: the most values that their sum may have, which costs no less; of an evaluation
    those of its sum.
    """
    with trainer_of(desk) as trainer:
        if settings.statistics.asked:
            found, bins = trainer.describe(), settings.statistics.bins
            if settings.statistics.evaluates is not None:
                task = find_task(settings.task)
                return statistics_of(task, found.classes, tuple(found.input_shape), bins).length
            columns = math.prod(found.input_shape) + 1
            return 1 + max(2, found.classes) + columns * (bins + 3)
        wanted = Wanted(task=settings.task, model=settings.model, seed=settings.seed)
        return len(trainer.initial(wanted).vector)
