"""What settings make each round ask of a site; the site holds requests against it.

The server asks what these functions return, and a site that was shown the settings beforehand
computes the same.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from lepton_common.messages import MaskedSum, PrivacyRequest, Recipe, SiteFacts
from lepton_common.models.tree_form import answer_size, form_of
from lepton_common.privacy.plan import SharedNoise, calibrated_noise, planned_epsilon
from lepton_common.secagg.spec import least_survivors
from lepton_common.settings import Settings
from lepton_common.statistics import EvaluationQuery, StatisticsQuery

_ROUNDING = 1e-6  # what two versions of an accountant may differ by, relative


def privacy_request(settings: Settings, size: int) -> PrivacyRequest | None:
    """Returns what the run asks of each site's privacy plan; None without DP.

    The noise covers all rounds and the spare ones, for a site that takes part in each.

    Args:
        settings: the whole configuration.
        size: number of weights in the model, or of values in the sum where statistics are asked.

    Raises:
        PlanError: no noise reaches the target.
    """
    privacy = settings.privacy
    draft = _without_noise(settings)
    if draft is None or privacy.epsilon is None:
        return None
    noise = calibrated_noise(
        target_epsilon=privacy.epsilon,
        delta=draft.delta,
        sample_rate=draft.sample_rate,
        max_steps=draft.max_steps,
        shared=shared_noise(settings, size),
    )
    return replace(draft, noise_multiplier=noise)


def keeps_privacy(asked: PrivacyRequest | None, settings: Settings, size: int) -> bool:
    """Says whether a request is what `privacy_request` returns, or has more noise than that.

    Checked by one look at the epsilon of the whole run, where calibrating takes many.
    """
    draft, target = _without_noise(settings), settings.privacy.epsilon
    if asked is None or draft is None or target is None:
        return asked is None and draft is None
    if asked != replace(draft, noise_multiplier=asked.noise_multiplier):
        return False
    spent = planned_epsilon(
        noise_multiplier=asked.noise_multiplier,
        delta=asked.delta,
        sample_rate=asked.sample_rate,
        max_steps=asked.max_steps,
        shared=shared_noise(settings, size),
    )
    return spent <= target * (1 + _ROUNDING)


def _without_noise(settings: Settings) -> PrivacyRequest | None:
    privacy, mode = settings.privacy, settings.privacy.mode
    if mode == "none" or privacy.epsilon is None or privacy.delta is None:
        return None
    steps = 1 if mode == "site" else settings.train.local_steps or 1
    return PrivacyRequest(
        mode=mode,
        count_within=privacy.clip_quantile is not None,
        delta=privacy.delta,
        sample_rate=privacy.sample_rate,
        noise_multiplier=1.0,
        clipping_norm=privacy.clipping_norm,
        steps_per_round=steps,
        max_steps=(settings.rounds + privacy.spare_rounds) * steps,
    )


def shared_noise(settings: Settings, size: int) -> SharedNoise | None:
    """Returns who shares the noise of a run's sums, given the model's weights; None: nobody.

    Raises:
        PlanError: no noise is certain.
    """
    if not settings.shares_noise:
        return None
    n, f = settings.cohort, settings.colluders
    values = size if settings.statistics.asked else answer_size(settings.model, size)
    values += settings.privacy.clip_quantile is not None
    return SharedNoise(n, least_survivors(n, f, settings.federation.quorum), f, values)


def weights_of(cohort: Iterable[SiteFacts], settings: Settings) -> dict[str, int]:
    """Returns the public weight of each site of a cohort, by its name.

    Where trees are grown people count alike, wherever they are: sites send sums, and no means.
    """
    equal = settings.federation.weights == "equal" or form_of(settings.model) is not None
    return {facts.name: 1 if equal else facts.public_size for facts in cohort}


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


def statistics_query(
    settings: Settings, length: int = 1
) -> StatisticsQuery | EvaluationQuery | None:
    """Returns what is asked in place of training; None where a model is trained.

    Args:
        settings: the whole configuration.
        length: numbers in the sum, where a model is evaluated; they follow from its data.
    """
    asked = settings.statistics
    if not asked.asked:
        return None
    if asked.evaluates is not None:
        return EvaluationQuery(bins=asked.bins, length=length)
    return StatisticsQuery(bins=asked.bins, features=asked.features)


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
        mixup=train.mixup,
    )
