"""Each accounting value that someone has published or that three accountants agree on.

Sources: [BW] Balle and Wang 2018, Theorem 8; [O] opacus/tests/accountants_test.py, Opacus 1.6.0;
[A] Abadi et al. 2016, section 4; [T] TensorFlow Privacy's MNIST tutorial, README; [N] measured with
Opacus 1.6.0, prv-accountant 0.2.0 and dp-accounting 0.6.0 at q = 0.01, sigma = 1, delta = 1e-5.
"""

import math
import warnings
from functools import cache

import dp_accounting
import numpy as np
import pytest
from dp_accounting import rdp

from lepton_common.errors import PlanError
from lepton_common.privacy import accounting
from lepton_common.privacy.accounting import bounds, epsilon
from lepton_common.privacy.events import Laplace, SampledGaussian
from lepton_common.privacy.skellam import ALL_ORDERS, ORDERS, poisson_sampled

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants import PRVAccountant, RDPAccountant

_DELTA = 1e-5


@cache
def _bounds(rate, noise, steps):
    return bounds([SampledGaussian(rate, noise, steps)], _DELTA)


def _epsilon(rate, noise, steps, fine=False):
    return epsilon((SampledGaussian(rate, noise, steps),), _DELTA, fine)


def _by_divergences(rate, noise, steps):
    return accounting._renyi_epsilon([SampledGaussian(rate, noise, steps)], _DELTA)


@pytest.mark.parametrize(
    ("steps", "certified", "prv", "by_loss", "by_rdp"),
    [  # [N]
        (1000, 1.81811, 1.83837, 1.82824, 2.10137),
        (2000, 2.57368, 2.59401, 2.58385, 2.86646),
        (5000, 4.19160, 4.21208, 4.20186, 4.58897),
        (10000, 6.17739, 6.19804, 6.18774, 6.71274),
    ],
)
def test_all_accountants_say_of_the_usual_example_what_they_said(
    steps, certified, prv, by_loss, by_rdp
):
    found = _bounds(0.01, 1.0, steps)
    assert found["pld"] == pytest.approx(by_loss, abs=2e-5)
    assert found["rdp"] == pytest.approx(by_rdp, abs=2e-5)
    assert found["prv"] == pytest.approx(prv, abs=2e-5)
    assert certified <= found["pld"] <= found["prv"] <= found["rdp"]


def test_reports_take_the_fine_grid_and_the_gate_the_coarse_one():
    assert _epsilon(0.01, 1.0, 1000) == pytest.approx(1.82893, abs=2e-5)  # [N]
    assert _epsilon(0.01, 1.0, 1000, fine=True) == _bounds(0.01, 1.0, 1000)["pld"]


@pytest.mark.parametrize(
    ("noise", "steps", "expected"),
    [(10.0, 100, 4.377178), (2.0, 1, 1.993091), (0.5, 1, 9.997256)],  # [BW]
)
def test_the_analytic_gaussian_mechanism(noise, steps, expected):
    assert _epsilon(1.0, noise, steps) == pytest.approx(expected, abs=2e-6)
    found = _bounds(1.0, noise, steps)
    assert found["pld"] == pytest.approx(expected, abs=1e-4)
    assert expected < found["rdp"] < 1.12 * expected


def test_opacus_own_constants():
    found = _bounds(0.04, 1.5, 2250)  # [O]
    assert found["rdp"] == pytest.approx(7.32911117143, rel=2e-4)
    assert found["prv"] == pytest.approx(6.777395712150674, abs=0.002)
    assert found["prv"] - 0.02 <= found["pld"] <= found["prv"]


@pytest.mark.parametrize(
    ("steps", "kind", "noise"),
    [(2250, "rdp", 1.416), (2250, "prv", 1.34765625), (2000, "rdp", 1.3562), (2000, "prv", 1.2915)],
)
def test_the_noise_that_opacus_finds_for_epsilon_8_spends_8(steps, kind, noise):
    # [O]: get_noise_multiplier to 0.01 in epsilon, at q = 0.04.
    event = SampledGaussian(0.04, noise, steps)
    accountant = accounting._renyi_epsilon if kind == "rdp" else accounting._prv_epsilon
    assert accountant([event], _DELTA) == pytest.approx(8.0, abs=0.02)


def _old_conversion(rate, noise, steps):
    """Epsilon as before 2020: divergence + log(1/delta)/(order - 1) (Mironov 2017)."""
    divergence = steps * poisson_sampled(ALL_ORDERS / (2 * noise**2), rate)
    return float(np.min(divergence - math.log(_DELTA) / (ORDERS - 1)))


def test_the_moments_accountant_of_2016():
    assert _old_conversion(0.01, 4.0, 10_000) == pytest.approx(1.2586, abs=2e-4)  # [A] has 1.26
    found = _bounds(0.01, 4.0, 10_000)
    assert found["rdp"] == pytest.approx(1.03549, abs=1e-4)
    assert found["pld"] == pytest.approx(0.94700, abs=1e-4)


@pytest.mark.parametrize(
    ("noise", "epochs", "published", "exactly"),
    [(1.12, 60, 2.92, 2.9222), (1.2, 10, 1.20, 1.1982), (0.6, 30, 9.74, 9.7527)],  # [T]
)
def test_the_tutorial_of_tensorflow_privacy(noise, epochs, published, exactly):
    rate = 256 / 60_000
    old = _old_conversion(rate, noise, math.ceil(epochs / rate))
    # The last of the three has its best order between 2 and 3, of which this knows the ends.
    assert old == pytest.approx(exactly, abs=0.002) or noise == 0.6
    assert old == pytest.approx(published, abs=0.005 if noise != 0.6 else 0.2)
    assert _epsilon(rate, noise, math.ceil(epochs / rate)) < published


_GRID = [
    (0.01, 1.0, 1000), (0.04, 1.5, 2250), (0.001, 0.7, 5000),
    (0.2, 3.0, 300), (0.02, 8.0, 20_000), (0.9, 20.0, 10),
]  # fmt: skip


@pytest.mark.parametrize(("rate", "noise", "steps"), _GRID)
def test_three_renyi_accountants_agree(rate, noise, steps):
    ours = _by_divergences(rate, noise, steps)
    opacus = RDPAccountant()
    opacus.history = [(noise, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = float(opacus.get_epsilon(_DELTA))
    google = rdp.RdpAccountant()
    one = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    google.compose(one, steps)
    assert ours == pytest.approx(theirs, rel=1e-3)
    # dp-accounting's fractional orders are upper bounds where its series is cut.
    assert ours == pytest.approx(google.get_epsilon(_DELTA), rel=1e-3)
    assert ours <= google.get_epsilon(_DELTA) * (1 + 1e-9)


@pytest.mark.parametrize(("rate", "noise", "steps"), _GRID)
def test_privacy_loss_is_tighter_than_divergences_from_an_epsilon_of_a_half(rate, noise, steps):
    by_rdp = _by_divergences(rate, noise, steps)
    assert by_rdp >= 0.5
    by_loss = accounting._loss_epsilon([SampledGaussian(rate, noise, steps)], _DELTA, 1e-3, by_rdp)
    assert by_loss < by_rdp
    assert _epsilon(rate, noise, steps) == by_loss


def test_below_it_divergences_can_be_tighter():
    found = _bounds(0.001, 20.0, 100_000)  # [N]
    assert found["rdp"] == pytest.approx(0.0515, abs=1e-4)
    assert found["pld"] == pytest.approx(0.0599, abs=1e-4)


def test_bounds_are_of_gaussian_steps_with_noise_only():
    for events in ([], [Laplace(1.0, 1)], [SampledGaussian(0.1, 0.0, 1)]):
        with pytest.raises(PlanError, match="only steps of the Gaussian"):
            bounds(events, _DELTA)
    with pytest.raises(PlanError, match="delta must lie in"):
        bounds([SampledGaussian(0.1, 1.0, 1)], 0.0)


@pytest.mark.parametrize("failure", [OverflowError, ValueError, math.inf, math.nan])
def test_without_an_answer_from_opacus_the_other_two_remain(failure, monkeypatch):
    # As with sigma 0.2, q 0.1 and 1000 steps, after 40 seconds.
    def fails(*_, **__):
        if isinstance(failure, float):
            return failure
        raise failure

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fails)
    found = bounds([SampledGaussian(0.2, 5.0, 10)], _DELTA)
    assert found["prv"] is None
    assert 0 < found["pld"] < found["rdp"]
