"""Mixup inside a site: training on weighted means of two records (Zhang et al. 2018).

Only without privacy. A mixed record's gradient depends on two people, so that clipping it bounds
neither's influence: each appears in its own and in another's, and no plan of this product charges
for that. Whoever asks for both is refused, by `check_mixup`.
"""

from collections.abc import Callable

import numpy as np
import torch

from lepton_common.errors import SettingsError

Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def check_mixup(strength: float, *, private: bool) -> None:
    """Checks that records may be mixed.

    Raises:
        SettingsError: with differential privacy they may not.
    """
    if strength and private:
        raise SettingsError(
            "train.mixup makes one record of two people's, so that privacy by record would bound "
            "neither's influence; set it to 0, or train without privacy."
        )


def mixed_losses(
    model: Callable[[torch.Tensor], torch.Tensor],
    losses: Losses,
    features: torch.Tensor,
    labels: torch.Tensor,
    strength: float,
    generator: np.random.Generator,
) -> torch.Tensor:
    """Returns the loss of each record mixed with another of its batch, shape [n].

    The weight is one of Beta(strength, strength) for the whole batch, and the loss is weighted
    alike, so that labels may be of any kind. Features must be numbers: tokens have no mean.

    Args:
        model: from features to outputs.
        losses: of outputs and labels, a record each.
        features: shape [n, ...].
        labels: shape [n, ...].
        strength: above 0; small mixes little.
        generator: public randomness.
    """
    weight = float(generator.beta(strength, strength))
    other = torch.from_numpy(generator.permutation(len(features))).to(features.device)
    outputs = model(weight * features + (1 - weight) * features[other])
    return weight * losses(outputs, labels) + (1 - weight) * losses(outputs, labels[other])
