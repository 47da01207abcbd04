"""Tests of mixup: what is mixed, and that it is refused with privacy."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from lepton_client.training.mixup import check_mixup, mixed_losses
from lepton_common.errors import SettingsError


def _losses(outputs, labels):
    return functional.cross_entropy(outputs, labels, reduction="none")


def test_features_and_losses_are_weighted_alike():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(6, 3, generator=generator), torch.arange(6) % 3
    seen = []

    def model(mixed):
        seen.append(mixed)
        return 2 * mixed

    found = mixed_losses(model, _losses, features, labels, 0.4, np.random.default_rng(3))
    known = np.random.default_rng(3)
    weight, other = known.beta(0.4, 0.4), torch.from_numpy(known.permutation(6))
    assert 0 < weight < 1
    mixed = weight * features + (1 - weight) * features[other]
    assert torch.allclose(seen[0], mixed)
    targets = weight * functional.one_hot(labels) + (1 - weight) * functional.one_hot(labels[other])
    soft = functional.cross_entropy(2 * mixed, targets, reduction="none")
    assert torch.allclose(found, soft)


def test_mixup_with_privacy_is_refused_with_the_reason():
    with pytest.raises(SettingsError, match="two people"):
        check_mixup(0.2, private=True)
    check_mixup(0.0, private=True)
    check_mixup(0.2, private=False)
