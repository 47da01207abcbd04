"""Tests of the events: how they are logged and read back, and what mixes of them spend."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lepton_common.errors import PlanError
from lepton_common.privacy import accounting
from lepton_common.privacy.accounting import GaussianEvent, bounds, epsilon
from lepton_common.privacy.events import (
    DiscreteGaussian,
    Laplace,
    SampledGaussian,
    Skellam,
    merge,
    read_event,
    rounded,
)

_DELTA = 1e-5
_EVENTS = [
    SampledGaussian(0.5, 2.0, 3),
    Skellam(0.25, 40.0, 900.0, 5000.0, 7),
    DiscreteGaussian(3.0, 64.0, 2),
    Laplace(2.5, 4),
]


def test_the_class_that_callers_know_is_the_sampled_gaussian():
    assert GaussianEvent is SampledGaussian


@pytest.mark.parametrize("event", _EVENTS, ids=lambda event: event.kind)
def test_an_event_survives_its_log(event):
    assert read_event(json.loads(json.dumps(event.record()))) == event
    assert read_event({"kind": event.kind, **event.record()}) == event


@pytest.mark.parametrize("event", _EVENTS[1:], ids=lambda event: event.kind)
def test_a_record_names_its_kind_and_its_values(event):
    values = event.record()
    assert values.pop("kind") == event.kind
    assert type(event)(**values) == event


def test_a_record_without_a_kind_is_a_sampled_gaussian_as_in_old_logs():
    assert read_event({"sample_rate": 1, "noise_multiplier": 2, "steps": 3}) == SampledGaussian(
        1.0, 2.0, 3
    )


@pytest.mark.parametrize("kind", ["gaussian", "Skellam", "", None, 3, ["skellam"]])
def test_an_unknown_kind_is_refused(kind):
    with pytest.raises(PlanError, match="not a kind of event"):
        read_event({**_EVENTS[1].record(), "kind": kind})


@pytest.mark.parametrize("event", _EVENTS, ids=lambda event: event.kind)
def test_unknown_and_missing_fields_are_refused_by_name(event):
    whole = event.record()
    with pytest.raises(PlanError, match="check surplus"):
        read_event({**whole, "surplus": 1})
    for name in set(whole) - {"kind"}:
        with pytest.raises(PlanError, match=f"check {name}"):
            read_event({key: value for key, value in whole.items() if key != name})


@pytest.mark.parametrize(
    ("event", "name", "value"),
    [
        *[(_EVENTS[0], "sample_rate", value) for value in (0.0, -0.1, 1.0001, 1e-10)],
        *[(_EVENTS[1], "sample_rate", value) for value in (0, 2)],
        *[(_EVENTS[0], "noise_multiplier", value) for value in (0.0, 0.009, -1, 1e10)],
        *[(_EVENTS[0], "steps", value) for value in (0, -1, 10**7 + 1)],
        *[(_EVENTS[1], "l2_sensitivity", value) for value in (0.0, 0.99, -3, 1e13)],
        *[(_EVENTS[1], "l1_sensitivity", value) for value in (0.0, -3, 10**400)],
        *[(_EVENTS[1], "variance", value) for value in (0.0, 0.003, -1, 2.0**61)],
        *[(_EVENTS[2], "variance", value) for value in (0.0, math.inf)],
        *[(_EVENTS[3], "scale_over_sensitivity", value) for value in (0.0, 0.001, 1e7)],
        *[(_EVENTS[3], "count", value) for value in (0, 10**7 + 1)],
        *[(_EVENTS[i], "steps", 0) for i in (1, 2)],
        *[(event, next(iter(event.__dict__)), math.nan) for event in _EVENTS],
        *[(event, next(iter(event.__dict__)), -math.inf) for event in _EVENTS],
    ],
)
def test_a_value_out_of_bounds_is_refused_by_name(event, name, value):
    with pytest.raises(PlanError, match=f"{name}=.*must lie in"):
        read_event({**event.record(), name: value})


@pytest.mark.parametrize(
    ("event", "name", "value"),
    [
        *[(_EVENTS[0], "steps", value) for value in (3.0, "3", None, True)],
        *[(_EVENTS[3], "count", value) for value in (4.0, "4", False)],
        *[(_EVENTS[0], "sample_rate", value) for value in ("0.5", None, True, [0.5])],
    ],
)
def test_a_value_of_another_type_is_refused(event, name, value):
    with pytest.raises(PlanError, match=f"{name} is a"):
        read_event({**event.record(), name: value})


@pytest.mark.parametrize("event", _EVENTS[1:], ids=lambda event: event.kind)
def test_new_kinds_cannot_be_made_out_of_bounds(event):
    name = "count" if isinstance(event, Laplace) else "steps"
    with pytest.raises(PlanError, match=f"{name}=0"):
        replace(event, **{name: 0})


def _worst_answers(loss, count, delta):
    """Returns epsilon of ``count`` randomised responses exactly: losses are (2j - count) loss."""
    losses = (2 * np.arange(count + 1) - count) * loss
    mass = stats.binom.pmf(np.arange(count + 1), count, 1 / (1 + math.exp(-loss)))
    low, high = 0.0, count * loss
    for _ in range(60):
        middle = (low + high) / 2
        spent = np.sum(mass * np.maximum(-np.expm1(middle - losses), 0.0))
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


@pytest.mark.parametrize(("scale", "count"), [(1.0, 1), (0.5, 1), (2.0, 20), (10.0, 300)])
def test_counts_cost_what_the_discrete_law_costs_and_never_more_than_their_sum(scale, count):
    exact = _worst_answers(1 / scale, count, _DELTA)
    spent = epsilon((Laplace(scale, count),), _DELTA)
    assert exact - 1e-9 <= spent <= exact + 2e-3
    assert spent <= count / scale


def test_the_continuous_laplace_distribution_would_have_been_too_little():
    # Of 100 counts at b = 2 the continuous law loses clearly less than discrete noise does.
    from dp_accounting import pld

    one = pld.privacy_loss_distribution.from_laplace_mechanism(2.0)
    continuous = one.self_compose(100).get_epsilon_for_delta(_DELTA)
    assert epsilon((Laplace(2.0, 100),), _DELTA) > 1.05 * continuous


def _discrete_gaussian_delta(scale, spent):
    k = np.arange(-int(40 * scale), int(40 * scale) + 1)
    weights = np.exp(-(k**2) / (2 * scale**2))
    p = weights / weights.sum()
    return np.maximum(p[1:] - math.exp(spent) * p[:-1], 0.0).sum()


@pytest.mark.parametrize("scale", [0.7, 1.0, 3.0, 30.0])
def test_a_discrete_gaussian_count_costs_what_its_law_says(scale):
    spent = epsilon((DiscreteGaussian(1.0, scale**2, 1),), _DELTA)
    assert _discrete_gaussian_delta(scale, spent) <= _DELTA
    assert _discrete_gaussian_delta(scale, spent - 0.01) > _DELTA


def test_the_discrete_gaussian_of_a_vector_goes_by_renyi_divergences_alone():
    # One coordinate's privacy loss distribution covers no vector, so the step is visible.
    one = epsilon((DiscreteGaussian(1.4, 100.0, 1),), _DELTA)
    vector = epsilon((DiscreteGaussian(math.sqrt(2), 100.0, 1),), _DELTA)
    assert vector > 1.3 * one
    gaussian = bounds([SampledGaussian(1.0, 10 / math.sqrt(2), 1)], _DELTA)
    assert vector == pytest.approx(gaussian["rdp"], rel=1e-9)


def test_a_mix_of_all_kinds_costs_more_than_each_and_less_than_the_sum():
    alone = [epsilon((event,), _DELTA) for event in _EVENTS]
    together = epsilon(tuple(_EVENTS), _DELTA)
    assert max(alone) < together < sum(alone)
    assert together == epsilon(tuple(reversed(_EVENTS)), _DELTA)
    twice = tuple(_EVENTS) * 2
    doubled = [
        replace(e, **{("count" if isinstance(e, Laplace) else "steps"): 2 * e.steps})
        for e in _EVENTS
    ]
    assert epsilon(twice, _DELTA) == epsilon(tuple(doubled), _DELTA)


def test_a_mix_with_known_losses_takes_the_tighter_bound():
    mix = (SampledGaussian(0.1, 2.0, 50), Laplace(4.0, 5), DiscreteGaussian(1.0, 100.0, 3))
    spent = epsilon(mix, _DELTA)
    vague = replace(mix[2], l2_sensitivity=1.5)  # hardly dearer, but no distribution is known
    assert epsilon((*mix[:2], vague), _DELTA) > 1.05 * spent
    assert epsilon(mix, _DELTA, fine=True) == pytest.approx(spent, abs=3e-3)


def test_no_noise_anywhere_in_a_mix_is_no_privacy():
    assert epsilon((*_EVENTS, SampledGaussian(1.0, 0.0, 1)), _DELTA) == math.inf


@pytest.mark.parametrize(
    ("event", "low", "high"),
    [
        (SampledGaussian(1e-9, 0.3, 1), 0.0, 0.0),  # it is part of nothing with less than delta
        (SampledGaussian(1.0, 1e9, 10**7), 0.0, 0.0),
        (SampledGaussian(0.5, 0.01, 10**7), 1e9, math.inf),
        (Skellam(0.5, 1e12, 1e18, 2.0**-8, 10**7), 1e9, math.inf),
        (Skellam(1e-9, 1.0, 1.0, 2.0**60, 1), 0.0, 0.0),
        (DiscreteGaussian(1.0, 2.0**60, 10**7), 0.0, 0.02),
        (DiscreteGaussian(1e12, 2.0**-8, 1), 1e9, math.inf),
        (Laplace(0.01, 10**7), 1e8, 1.0001e9),
        (Laplace(1e6, 1), 0.0, 1e-6),
    ],
)
def test_the_ends_of_what_an_event_may_say_are_answered(event, low, high):
    assert read_event(event.record()) == event
    assert low <= epsilon((event,), _DELTA) <= high


def test_gaussians_without_sampling_compose_to_one():
    assert merge([SampledGaussian(1.0, 2.0, 4), SampledGaussian(1.0, 1.0, 3)]) == [
        SampledGaussian(1.0, 0.5, 1)
    ]


def _scattered(count, seed):
    draw = np.random.default_rng(seed)
    return tuple(
        SampledGaussian(float(q), float(sigma), int(steps))
        for q, sigma, steps in zip(
            10 ** draw.uniform(-3, -0.5, count),
            10 ** draw.uniform(0, 1, count),
            draw.integers(1, 30, count),
            strict=True,
        )
    )


_ANY = st.one_of(
    st.builds(
        SampledGaussian,
        st.floats(1e-3, 1.0),
        st.floats(0.5, 50.0),
        st.integers(1, 100),
    ),
    st.builds(
        Skellam,
        st.floats(1e-3, 1.0),
        st.floats(1.0, 1e3),
        st.floats(1.0, 1e6),
        st.floats(1.0, 1e8),
        st.integers(1, 100),
    ),
    st.builds(DiscreteGaussian, st.floats(1.0, 1e3), st.floats(1.0, 1e8), st.integers(1, 100)),
    st.builds(Laplace, st.floats(0.1, 100.0), st.integers(1, 100)),
)


@settings(max_examples=40)
@given(st.lists(_ANY, min_size=5, max_size=25), st.integers(4, 10))
def test_rounding_keeps_all_steps_and_covers_every_event(events, most):
    merged = merge(events)
    groups = rounded(merged, most)
    assert len(groups) <= most
    assert sum(group.steps for group in groups) == sum(event.steps for event in merged)
    for event in merged:
        assert any(_covers(group, event) for group in groups)


def _covers(group, event):
    if group.kind != event.kind:
        return False
    noise = {"noise_multiplier", "variance", "scale_over_sensitivity"}
    return all(
        (theirs >= getattr(group, name)) if name in noise else (theirs <= getattr(group, name))
        for name, theirs in vars(event).items()
    )


@settings(max_examples=8)
@given(st.integers(0, 2**32), st.integers(2, 12))
def test_rounding_never_lowers_a_bound_by_divergences(seed, most):
    events = merge(_scattered(24, seed))
    exact = accounting._renyi_epsilon(events, _DELTA)
    assert accounting._renyi_epsilon(rounded(events, most), _DELTA) > exact


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_rounding_never_lowers_a_bound_by_privacy_loss(seed):
    events = merge(_scattered(6, seed))
    exact = accounting._loss_epsilon(events, _DELTA, 1e-3, 1.0)
    assert accounting._loss_epsilon(rounded(events, 3), _DELTA, 1e-3, 1.0) > exact


def test_up_to_the_limit_nothing_is_rounded():
    events = merge(_scattered(20, 1))
    assert rounded(events, 20) == events


def test_two_hundred_unlike_events_are_quick_and_close():
    events = _scattered(200, 1)
    before = time.process_time()
    spent = epsilon(events, _DELTA)
    assert time.process_time() - before < 4.0  # 0.6 s on a core of one's own
    assert 17.238 <= spent <= 1.15 * 17.238  # of 200 distributions, which take 10 s
