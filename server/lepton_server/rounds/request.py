"""What a round asks of each site, made of settings and the state so far."""

import hashlib

from lepton_common.arrays import Layout, digest_of, pack
from lepton_common.messages import MaskedSum, PrivacyRequest, Recipe, TrainRequest
from lepton_common.privacy.plan import SharedNoise, calibrated_noise
from lepton_common.secagg.spec import least_survivors
from lepton_common.settings import Settings
from lepton_server.rounds.checkpoint import Checkpoint


def privacy_request(settings: Settings, size: int) -> PrivacyRequest | None:
    """Returns what the run asks of each site's privacy plan; None without DP.

    The noise covers all rounds and the spare ones, for a site that takes part in each.

    Args:
        settings: the whole configuration.
        size: number of weights in the model.

    Raises:
        PlanError: no noise reaches the target.
    """
    privacy, mode = settings.privacy, settings.privacy.mode
    if mode == "none" or privacy.epsilon is None or privacy.delta is None:
        return None
    steps = 1 if mode == "site" else settings.train.local_steps or 1
    shared = None
    if settings.shares_noise:
        n, f = settings.cohort, settings.colluders
        size += privacy.clip_quantile is not None
        shared = SharedNoise(n, least_survivors(n, f, settings.federation.quorum), f, size)
    max_steps = (settings.rounds + privacy.spare_rounds) * steps
    return PrivacyRequest(
        mode=mode,
        count_within=privacy.clip_quantile is not None,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        noise_multiplier=calibrated_noise(
            target_epsilon=privacy.epsilon,
            delta=privacy.delta,
            sample_rate=privacy.sample_rate,
            max_steps=max_steps,
            shared=shared,
        ),
        clipping_norm=privacy.clipping_norm,
        steps_per_round=steps,
        max_steps=max_steps,
    )


def train_request(
    settings: Settings,
    run: str,
    layout: Layout,
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
        layout: the model's.
        state: after the last finished round.
        privacy: what the run asks of each site's privacy plan.
        weights: public weight of each site of the cohort.
        ledger_heads: the newest entry of each site's privacy ledger that the server has seen.
        update_scale: what whole updates are divided by before they are clipped.
    """
    return TrainRequest(
        run=run,
        round=state.round + 1,
        task=settings.task,
        model=settings.model,
        prepare=settings.data.prepare,
        cohort=len(weights),
        layout=layout.digest,
        model_digest=digest_of(pack(state.model).data),
        recipe=recipe(settings, state.round + 1, update_scale),
        privacy=privacy,
        masked=masked_sum(settings, weights) if settings.secure else None,
        ledger_heads={name: head for name, head in ledger_heads.items() if name in weights},
    )


def masked_sum(settings: Settings, weights: dict[str, int]) -> MaskedSum:
    """Returns how a cohort's updates are summed, given each site's public weight."""
    secagg, masked_size = settings.secagg, settings.federation.weights == "masked_size"
    return MaskedSum(
        weights=dict.fromkeys(weights, 1) if masked_size else weights,
        weight_cap=max(weights.values()) if masked_size else None,
        coordinates=secagg.coordinates if secagg.compression == "random_coordinates" else 1.0,
        rotate=secagg.rotate,
        rounding=secagg.rounding,
        groups=secagg.groups,
    )


def recipe(settings: Settings, round_: int, update_scale: float = 1.0) -> Recipe:
    """Returns how to train locally in a round, counted from 1."""
    train, strategy = settings.train, settings.strategy
    seed = hashlib.sha256(f"{settings.seed}/{round_}".encode()).digest()
    return Recipe(
        optimizer=train.optimizer,
        learning_rate=train.learning_rate_at(round_, settings.rounds),
        momentum=train.momentum,
        weight_decay=train.weight_decay,
        batch_size=train.batch_size,
        local_epochs=train.local_epochs,
        local_steps=train.local_steps,
        augmentations=train.augmentations,
        precision=train.precision,
        device=train.device,
        proximal_mu=strategy.proximal_mu if strategy.name == "fedprox" else 0.0,
        update_scale=update_scale,
        seed=int.from_bytes(seed[:7]),
    )
