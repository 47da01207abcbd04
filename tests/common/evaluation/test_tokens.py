"""Tests of next-token statistics: they agree with PyTorch's loss, and skip what has no label."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from lepton_common.errors import DataInvalid, ModelMismatch, SettingsError
from lepton_common.evaluation.statistics import TokenStatistics, all_metrics

_STATISTICS = TokenStatistics(vocabulary=11, positions=6)


def _problem(n=40):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(-1, 11, (n, 6), generator=generator)
    return 2 * torch.randn(n, 6, 11, generator=generator), labels


def test_metrics_agree_with_pytorch():
    logits, labels = _problem()
    loss = functional.cross_entropy(
        logits.double().flatten(0, 1), labels.flatten(), ignore_index=-1
    )
    right = (logits.argmax(2) == labels)[labels >= 0].double().mean()
    expected = {"accuracy": float(right), "log_loss": float(loss), "perplexity": math.exp(loss)}
    vector = _STATISTICS.of(logits, labels)
    assert _STATISTICS.metrics(vector) == pytest.approx(expected, rel=1e-9)
    assert all_metrics(_STATISTICS, logits, labels) == pytest.approx(expected, rel=1e-9)


def test_statistics_add_up_and_records_may_be_short():
    logits, labels = _problem()
    parts = [_STATISTICS.of(logits[i::4], labels[i::4]) for i in range(4)]
    assert np.allclose(sum(parts), _STATISTICS.of(logits, labels))
    none = labels.clone()
    none[:, 3:] = -1
    short = _STATISTICS.of(logits[:, :3], labels[:, :3])
    assert np.allclose(short, _STATISTICS.of(logits, none))


def test_losses_are_capped_and_what_is_not_finite_is_wrong_at_full_loss():
    statistics = TokenStatistics(2, 1, loss_cap=4.0)
    logits = torch.tensor([[[0.0, 50.0]], [[math.nan, 0.0]]])
    labels = torch.tensor([[0], [0]])
    found = statistics.metrics(statistics.of(logits, labels))
    assert found == pytest.approx({"accuracy": 0.0, "log_loss": 4.0, "perplexity": math.exp(4)})
    assert statistics.exact(logits[:1], labels[:1])["log_loss"] == pytest.approx(50.0)
    assert statistics.exact(logits, labels) == {}


def test_noised_sums_give_finite_metrics():
    rng = np.random.default_rng(3)
    for scale in (1.0, 1e6):
        for _ in range(50):
            found = _STATISTICS.metrics(rng.normal(size=3) * scale)
            assert all(map(math.isfinite, found.values()))
            assert 0.0 <= found.get("accuracy", 0.0) <= 1.0
            assert 1.0 <= found.get("perplexity", 1.0) <= math.exp(20.0)
    assert _STATISTICS.metrics(np.zeros(3)) == {}


def test_other_forms_are_refused_by_name():
    with pytest.raises(SettingsError, match="at most 6 positions"):
        _STATISTICS.of(torch.zeros(1, 7, 11), torch.zeros(1, 7).long())
    with pytest.raises(ModelMismatch, match="11"):
        _STATISTICS.of(torch.zeros(1, 6, 10), torch.zeros(1, 6).long())
    with pytest.raises(DataInvalid, match=r"-1\.\.10"):
        _STATISTICS.of(torch.zeros(1, 6, 11), torch.full((1, 6), 11))
