"""The request of a round, made of settings and the state so far."""

from lepton_common.arrays import digest_of, pack
from lepton_common.asking import masked_sum, recipe, statistics_query
from lepton_common.messages import PrivacyRequest, TrainRequest
from lepton_common.settings import Settings
from lepton_common.strict import Digest
from lepton_server.rounds.checkpoint import Checkpoint


def train_request(
    settings: Settings,
    run: str,
    layout: Digest,
    state: Checkpoint,
    privacy: PrivacyRequest | None,
    weights: dict[str, int],
    ledger_heads: dict[str, str],
    update_scale: float = 1.0,
) -> TrainRequest:
    """Returns the request of the round after ``state``; the same for all sites of the cohort.

    Args:
        settings: the whole configuration.
        run: name of the run.
        layout: digest of the model's.
        state: after the last finished round.
        privacy: what the run asks of each site's privacy plan.
        weights: public weight of each site of the cohort.
        ledger_heads: the newest entry of the cohort's privacy ledgers that the server has seen.
        update_scale: what whole updates are divided by before they are clipped.
    """
    return TrainRequest(
        run=run,
        round=state.round + 1,
        task=settings.task,
        model=settings.model,
        prepare=settings.data.prepare,
        cohort=len(weights),
        layout=layout,
        model_digest=digest_of(pack(state.model).data),
        recipe=recipe(settings, state.round + 1, update_scale),
        privacy=privacy,
        masked=masked_sum(settings, weights) if settings.secure else None,
        ledger_heads=ledger_heads,
        statistics=statistics_query(settings),
    )
