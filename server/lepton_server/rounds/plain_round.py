"""A round without secure aggregation: the server adds up single updates."""

from flwr.app import RecordDict
from flwr.serverapp import Grid

from lepton_common.arrays import Vector
from lepton_common.errors import LeptonError
from lepton_common.messages import (
    TRAIN,
    Receipt,
    SiteFacts,
    TrainRequest,
    read_update,
    train_content,
)
from lepton_common.pages import give_back_freed_memory
from lepton_server.progress import OBSERVER, Observer
from lepton_server.rounds.collect import collect
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.gathered import Gathered, check_receipt
from lepton_server.rounds.parked import LARGE, rest


def gather_plain(
    grid: Grid,
    cohort: dict[int, SiteFacts],
    request: TrainRequest,
    model: Vector,
    mean: ExactMean,
    timeout_s: float,
) -> Gathered:
    """Adds each usable update to ``mean`` as it comes; names the sites that gave none."""
    gathered, observer = Gathered(mean), OBSERVER.get(Observer())
    large = model.nbytes >= LARGE
    answers = collect(grid, dict.fromkeys(cohort, train_content(request, model)), TRAIN, timeout_s)
    rest(model)
    if large:
        give_back_freed_memory()  # the pieces in which it went
    came = 0
    for node, answer in answers:  # not counted by `enumerate`, which holds on to the last one
        came += 1
        observer.on_answer(TRAIN, came, len(cohort))
        site = cohort[node].name
        if isinstance(answer, str):
            gathered.failed[site] = answer
            continue
        try:
            receipt = _add(mean, answer, request, cohort[node])
        except LeptonError as error:
            gathered.failed[site] = type(error).__name__
        else:
            gathered.note(site, receipt)
        del answer  # before the next is taken
        if large:
            give_back_freed_memory()
    gathered.sort()
    give_back_freed_memory()  # the pieces in which updates came
    gathered.mean = mean.without_sum()
    return gathered


def _add(mean: ExactMean, answer: RecordDict, request: TrainRequest, facts: SiteFacts) -> Receipt:
    update, _, receipt = read_update(answer, mean.size)
    check_receipt(receipt, request, facts)
    mean.add(facts.name, update)
    return receipt
