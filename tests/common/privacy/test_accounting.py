"""Tests of the accounting against published values, Opacus, and what composition must obey."""

import math
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_common.errors import PlanError
from lepton_common.privacy import accounting
from lepton_common.privacy.accounting import GaussianEvent, calibrate, epsilon

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from opacus.accountants import GaussianAccountant, PRVAccountant, RDPAccountant

_DELTA = 1e-5
# (steps, certified lower bound by PRV, PLD on a grid of 1e-3, RDP), for q = 0.01, sigma = 1.
_PUBLISHED = [
    (1000, 1.81811, 1.82893, 2.10137),
    (2000, 2.57368, 2.58496, 2.86646),
    (5000, 4.19160, 4.20390, 4.58898),
    (10000, 6.17739, 6.19098, 6.71276),
]


def _spent(sample_rate, noise_multiplier, steps, delta=_DELTA):
    return epsilon((GaussianEvent(sample_rate, noise_multiplier, steps),), delta)


def _opacus(kind, sample_rate, noise_multiplier, steps, delta=_DELTA, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        accountant = kind()
        accountant.history = [(noise_multiplier, sample_rate, steps)]
        return float(accountant.get_epsilon(delta, **options))


@pytest.mark.parametrize(
    ("noise_multiplier", "steps", "expected"),
    [(10.0, 100, 4.377178), (2.0, 1, 1.993091), (0.5, 1, 9.997256), (20.0, 100, 1.993091)],
)
def test_without_sampling_the_exact_gaussian_curve_is_used(noise_multiplier, steps, expected):
    assert _spent(1.0, noise_multiplier, steps) == pytest.approx(expected, abs=2e-6)


def test_the_exact_curve_solves_its_equation():
    def normal(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    for mu in (0.01, 0.3, 1.0, 4.0):
        eps = _spent(1.0, 1 / mu, 1)
        delta = normal(mu / 2 - eps / mu) - math.exp(eps) * normal(-mu / 2 - eps / mu)
        assert delta == pytest.approx(_DELTA, rel=1e-5)
        assert delta <= _DELTA


def test_hardly_any_loss_is_an_epsilon_of_zero():
    assert _spent(1.0, 1e5, 1) == 0.0


def test_the_exact_curve_does_not_overflow_where_there_is_hardly_noise():
    # mu = 100: epsilon is close to mu**2 / 2 + mu * 4.265, the normal quantile of 1 - delta.
    assert 5424 < _spent(1.0, 0.01, 1) < 5426.5


@pytest.mark.parametrize(("steps", "lower", "pld", "rdp"), _PUBLISHED)
def test_sampled_steps_cost_what_the_notes_say(steps, lower, pld, rdp):
    spent = _spent(0.01, 1.0, steps)
    assert spent == pytest.approx(pld, abs=2e-5)
    assert lower <= spent < rdp


@pytest.mark.parametrize(("steps", "lower"), [row[:2] for row in _PUBLISHED])
def test_the_gdp_accountant_lies_below_the_certified_bound_and_below_ours(steps, lower):
    gdp = _opacus(GaussianAccountant, 0.01, 1.0, steps, poisson=True)
    assert gdp < lower < _spent(0.01, 1.0, steps)


def test_opacus_own_test_values_bracket_ours():
    spent = _spent(0.04, 1.5, 2250)
    assert 6.777395712150674 - 0.02 <= spent <= 6.777395712150674 + 0.02
    assert spent <= 7.32911117143


@pytest.mark.parametrize(
    ("sample_rate", "noise_multiplier", "steps"),
    [(0.01, 1.0, 1000), (0.04, 1.5, 2250), (0.1, 2.0, 200), (0.02, 1.3, 1500)],
)
def test_ours_lies_where_the_accountants_of_opacus_say(sample_rate, noise_multiplier, steps):
    spent = _spent(sample_rate, noise_multiplier, steps)
    accountant = PRVAccountant()
    accountant.history = [(noise_multiplier, sample_rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prv = accountant._get_dprv(eps_error=0.01, delta_error=_DELTA / 1000)
        low, _, high = prv.compute_epsilon(_DELTA, _DELTA / 1000, 0.01)
    assert low - 0.02 <= spent <= high + 0.02
    assert spent >= low
    assert spent <= _opacus(RDPAccountant, sample_rate, noise_multiplier, steps) + 1e-6


def test_many_very_noisy_steps_take_the_tighter_renyi_bound():
    # RDP .0515, PLD .2065 on this grid (docs: notes on differential privacy, section 3).
    assert _spent(0.001, 20.0, 100_000) == pytest.approx(0.0515, abs=5e-4)


def test_rounds_compose_to_what_one_long_run_costs():
    one = GaussianEvent(0.01, 1.0, 2000)
    assert epsilon((one, one, one), _DELTA) == epsilon((GaussianEvent(0.01, 1.0, 6000),), _DELTA)
    assert epsilon((one,) * 3, _DELTA) < 3 * epsilon((one,), _DELTA)
    full = GaussianEvent(1.0, 10.0, 20)
    assert epsilon((full,) * 5, _DELTA) == pytest.approx(4.377178, abs=2e-6)


def test_three_rounds_of_3_185_are_4_695_and_not_3_185():
    # An engine made anew each round reports 3.185 each time (Opacus PRV, upper by 0.01).
    one = GaussianEvent(1 / 8, 1.0, 8)
    assert epsilon((one,), _DELTA) == pytest.approx(3.185, abs=0.02)
    assert epsilon((one,) * 3, _DELTA) == pytest.approx(4.695, abs=0.02)
    assert epsilon((one,) * 20, _DELTA) == pytest.approx(11.30, abs=0.02)


def test_unlike_events_cost_at_least_the_dearest_and_at_most_the_sum():
    events = (GaussianEvent(0.05, 1.5, 100), GaussianEvent(1.0, 20.0, 10))
    alone = [epsilon((event,), _DELTA) for event in events]
    together = epsilon(events, _DELTA)
    assert max(alone) < together < sum(alone)


def test_nothing_done_is_nothing_spent():
    assert epsilon((), _DELTA) == 0.0
    assert _spent(0.1, 1.0, 0) == 0.0
    assert _spent(0.1, 0.0, 0) == 0.0


def test_no_noise_is_no_privacy():
    assert _spent(0.1, 0.0, 1) == math.inf
    events = (GaussianEvent(0.1, 1.0, 5), GaussianEvent(1.0, 0.0, 1))
    assert epsilon(events, _DELTA) == math.inf


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, 1.5, math.nan, math.inf])
def test_a_delta_outside_zero_to_one_is_refused(delta):
    with pytest.raises(PlanError, match="delta must lie in"):
        epsilon((GaussianEvent(1.0, 1.0, 1),), delta)
    with pytest.raises(PlanError, match="delta must lie in"):
        epsilon((), delta)


_FULL = st.builds(
    GaussianEvent, st.just(1.0), st.sampled_from([0.5, 1.0, 3.0, 10.0, 50.0]), st.integers(0, 50)
)
_SAMPLED = st.builds(
    GaussianEvent,
    st.sampled_from([0.2, 1.0]),
    st.sampled_from([4.0, 8.0]),
    st.integers(0, 3),
)


@given(st.lists(_FULL, max_size=6), st.randoms(use_true_random=False))
def test_the_order_of_events_does_not_matter(events, shuffle):
    other = list(events)
    shuffle.shuffle(other)
    assert epsilon(tuple(events), _DELTA) == epsilon(tuple(other), _DELTA)


@settings(max_examples=6)
@given(st.lists(_SAMPLED, max_size=4))
def test_the_order_of_sampled_events_does_not_matter(events):
    assert epsilon(tuple(events), _DELTA) == epsilon(tuple(reversed(events)), _DELTA)


@given(st.lists(_FULL, max_size=5), _FULL)
def test_one_more_event_never_costs_less(events, more):
    assert epsilon((*events, more), _DELTA) >= epsilon(tuple(events), _DELTA)


@settings(max_examples=6)
@given(st.lists(_SAMPLED, max_size=3), _SAMPLED)
def test_one_more_sampled_event_never_costs_less(events, more):
    assert epsilon((*events, more), _DELTA) >= epsilon(tuple(events), _DELTA) - 1e-9


@pytest.mark.parametrize(
    "dearer",
    [GaussianEvent(0.2, 2.0, 50), GaussianEvent(0.1, 1.5, 50), GaussianEvent(0.1, 2.0, 80)],
)
def test_more_sampling_less_noise_or_more_steps_cost_more(dearer):
    base = GaussianEvent(0.1, 2.0, 50)
    assert epsilon((dearer,), _DELTA) > epsilon((base,), _DELTA)
    assert epsilon((base,), 1e-7) > epsilon((base,), _DELTA)


def _steps(sample_rate, steps):
    return lambda sigma: GaussianEvent(sample_rate, sigma, steps)


@pytest.mark.parametrize(
    ("target", "delta", "sample_rate", "steps"),
    [(3.0, 1e-5, 1.0, 30), (1.0, 1e-5, 1.0, 1), (8.0, 1e-6, 1.0, 500), (2.0, 1e-5, 0.05, 200)],
)
def test_calibration_meets_its_target_closely_and_never_exceeds_it(
    target, delta, sample_rate, steps
):
    sigma = calibrate(target, delta, _steps(sample_rate, steps))
    assert 0.98 * target <= _spent(sample_rate, sigma, steps, delta) <= target
    assert _spent(sample_rate, sigma / 1.002, steps, delta) > target


def test_a_generous_target_gets_the_least_noise_there_is():
    target = _spent(1.0, 0.2, 1)
    assert calibrate(target, _DELTA, _steps(1.0, 1)) == pytest.approx(0.3, rel=0.002)


def test_a_target_that_no_noise_reaches_is_refused():
    with pytest.raises(PlanError, match=r"raise privacy.epsilon"):
        calibrate(1e-9, 1e-9, _steps(1.0, 1000))


def test_an_event_is_logged_as_plain_values():
    assert GaussianEvent(0.5, 2.0, 3).record() == {
        "sample_rate": 0.5,
        "noise_multiplier": 2.0,
        "steps": 3,
    }


def test_a_looser_bound_stands_where_it_is_enough_and_nowhere_else(monkeypatch):
    looked = []
    honest = accounting._loss_epsilon
    monkeypatch.setattr(
        accounting, "_loss_epsilon", lambda *given: looked.append(given) or honest(*given)
    )
    event = (GaussianEvent(0.013, 1.0, 1000),)
    loose = epsilon(event, _DELTA, enough=100.0)
    assert not looked
    tight = epsilon(event, _DELTA)
    assert tight < loose == epsilon(event, _DELTA, enough=loose)
    # Between the two bounds, and below both, the tight one is asked; it is computed once.
    for most in ((tight + loose) / 2, tight / 2, float("nan")):
        assert epsilon(event, _DELTA, enough=most) == tight
    assert len(looked) == 1
