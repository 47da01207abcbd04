"""Derivatives that trees are grown from: against autograd, and within their bounds always."""

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from lepton_common.tasks.derivatives import Logistic, Squared, derivatives_of
from lepton_common.tasks.objectives import OBJECTIVES, Binary, Hazard, Regression

KINDS = [(Logistic(), Binary()), (Squared(), Regression())]


def labels_for(kind, rng, count):
    if isinstance(kind, Logistic):
        return rng.integers(2, size=count).astype(float)
    return rng.uniform(-1, 1, count)


@pytest.mark.parametrize(("kind", "objective"), KINDS)
def test_they_are_those_of_the_tasks_own_loss(kind, objective):
    rng = np.random.default_rng(0)
    labels = labels_for(kind, rng, 300)
    outputs = rng.normal(0, 3, 300) if isinstance(kind, Logistic) else labels - rng.uniform(-1, 1)
    tensor = torch.tensor(outputs[:, None], requires_grad=True)
    losses = objective.losses(tensor, torch.from_numpy(labels))
    (first,) = torch.autograd.grad(losses.sum(), tensor, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), tensor)
    g, h = kind.of(outputs, labels)
    assert g == pytest.approx(first.detach().numpy()[:, 0], abs=1e-12)
    assert h == pytest.approx(second.numpy()[:, 0], abs=1e-12)


@given(
    outputs=st.lists(st.floats(width=64), min_size=1, max_size=5),
    label=st.floats(-1, 1),
    kind=st.sampled_from([kind for kind, _ in KINDS]),
)
@example([np.nan, np.inf, -np.inf, 1e308], 1.0, KINDS[0][0])
@example([np.nan, np.inf, -np.inf, -1e308], -1.0, KINDS[1][0])
def test_no_part_is_longer_than_its_bound(outputs, label, kind):
    labels = np.full(len(outputs), float(label > 0) if isinstance(kind, Logistic) else label)
    first, second = kind.of(np.array(outputs), labels)
    assert np.isfinite(first).all()
    assert (np.hypot(first, kind.weight * second) <= kind.norm * (1 + 1e-12)).all()
    assert (second >= 0).all()


def test_bounds_are_reached_and_cut_nothing_of_two_classes():
    outputs = np.linspace(-30, 30, 2001)
    first, second = Logistic().of(outputs, np.ones_like(outputs))
    chance = 1 / (1 + np.exp(-outputs))
    assert first == pytest.approx(chance - 1, abs=1e-12)
    assert second == pytest.approx(chance * (1 - chance), abs=1e-12)
    assert np.hypot(first, 3 * second).max() == pytest.approx(1.0, abs=1e-6)
    assert Squared().of(np.array([9.0]), np.array([-1.0])) == (pytest.approx([1]), pytest.approx(1))


@pytest.mark.parametrize(("kind", "_"), KINDS)
def test_the_base_is_the_best_constant_and_sums_move_to_it(kind, _):
    rng = np.random.default_rng(1)
    labels = labels_for(kind, rng, 500) * (1 if isinstance(kind, Logistic) else 0.4) + 0.0
    first, second = kind.of(np.zeros(500), labels)
    base = kind.base(first.sum(), second.sum())
    there, steep = kind.of(np.full(500, base), labels)
    assert there.sum() == pytest.approx(0, abs=1e-9)
    moved = kind.moved(first[:40].sum(), second[:40].sum(), base)
    assert moved == pytest.approx((there[:40].sum(), steep[:40].sum()))


def test_noise_makes_no_base_that_is_not_a_number():
    for kind, _ in KINDS:
        for first, second in ((5.0, -1.0), (5.0, 0.0), (-50.0, 1.0), (50.0, 1.0)):
            assert abs(kind.base(first, second)) < 7


def test_other_losses_have_none():
    assert {name for name, kind in OBJECTIVES.items() if derivatives_of(kind)} == {
        "binary", "regression"
    }  # fmt: skip
    assert derivatives_of(Hazard((1.0,))) is None
