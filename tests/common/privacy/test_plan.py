"""Tests of the privacy plan: what it refuses, what identifies it, and what it accounts for."""

import math
from dataclasses import FrozenInstanceError, fields, replace

import pytest

from lepton_common.errors import PlanError
from lepton_common.privacy.accounting import GaussianEvent, calibrate, epsilon
from lepton_common.privacy.plan import (
    PrivacyPlan,
    SharedNoise,
    calibrated_noise,
    public_size_class,
)


@pytest.fixture
def plan():
    return PrivacyPlan(
        unit="row",
        delta=1e-5,
        sample_rate=0.1,
        noise_multiplier=2.0,
        clipping_norm=1.0,
        steps_per_round=3,
        max_steps=30,
        denominator=64.0,
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("delta", value) for value in (0.0, 1.0, -1e-5, math.nan, math.inf)],
        *[("sample_rate", value) for value in (0.0, -0.1, 1.0001, math.nan)],
        *[("noise_multiplier", value) for value in (0.0, -1.0, math.inf, math.nan)],
        *[("clipping_norm", value) for value in (0.0, -1.0, math.inf, math.nan)],
        *[("steps_per_round", value) for value in (0, -1)],
        *[("max_steps", value) for value in (0, 2, -30)],
        *[("denominator", value) for value in (0.0, -64.0, math.inf, math.nan)],
        *[("relation", value) for value in ("", "replace-one", "add-or-remove-one ")],
    ],
)
def test_a_plan_without_a_guarantee_is_refused_by_the_name_of_the_field(plan, name, value):
    with pytest.raises(PlanError, match=f"{name}={value} gives no guarantee"):
        replace(plan, **{name: value})


def test_the_bounds_themselves_are_allowed(plan):
    assert replace(plan, sample_rate=1.0).sample_rate == 1.0
    assert replace(plan, max_steps=3).max_steps == 3


def test_a_plan_cannot_be_changed(plan):
    with pytest.raises(FrozenInstanceError):
        plan.noise_multiplier = 0.1


def test_the_digest_changes_with_every_field(plan):
    changes = {
        "unit": "patient",
        "delta": 1e-6,
        "sample_rate": 0.2,
        "noise_multiplier": 2.5,
        "clipping_norm": 1.5,
        "steps_per_round": 2,
        "max_steps": 31,
        "denominator": 65.0,
    }
    assert set(changes) | {"relation", "shared"} == {field.name for field in fields(PrivacyPlan)}
    digests = {replace(plan, **{name: value}).digest for name, value in changes.items()}
    assert len(digests | {plan.digest}) == len(changes) + 1
    assert replace(plan).digest == plan.digest
    shared = SharedNoise(sites=10, survivors=7, colluders=3, dimension=5)
    one_step = replace(plan, steps_per_round=1)
    others = [
        replace(shared, **{field.name: 6}) for field in fields(shared) if field.name != "sites"
    ]
    plans = [replace(one_step, shared=noise) for noise in (None, shared, *others)]
    assert len({found.digest for found in plans}) == len(plans)
    assert len(plan.digest) == 64


def test_an_event_covers_the_steps_of_its_rounds(plan):
    assert plan.event() == GaussianEvent(0.1, 2.0, 3)
    assert plan.event(4) == GaussianEvent(0.1, 2.0, 12)


def test_what_a_plan_says_it_spends_is_what_the_accounting_says(plan):
    assert plan.epsilon(4) == epsilon((plan.event(4),), plan.delta)
    assert plan.epsilon(4) == epsilon((plan.event(),) * 4, plan.delta)
    assert plan.epsilon(0) == 0.0
    assert plan.epsilon(5) > plan.epsilon(4)


@pytest.mark.parametrize("survivors", [4, 7, 10])
def test_shared_noise_is_calibrated_whoever_answers(survivors):
    shared = SharedNoise(sites=10, survivors=survivors, colluders=3, dimension=5000)
    values = {"target_epsilon": 3.0, "delta": 1e-5, "sample_rate": 0.1, "max_steps": 50}
    noise = calibrated_noise(**values, shared=shared)
    assert 1.0 <= noise / calibrated_noise(**values) <= 1.15  # Rényi against loss distributions
    plan = PrivacyPlan("row", 1e-5, 0.1, noise, 1.0, 1, 50, 10.0, shared)
    assert 2.95 < plan.epsilon(50) <= 3.0


def test_calibrated_noise_is_the_accountings():
    noise = calibrated_noise(target_epsilon=3.0, delta=1e-5, sample_rate=1.0, max_steps=30)
    assert noise == calibrate(3.0, 1e-5, lambda sigma: GaussianEvent(1.0, sigma, 30))


@pytest.mark.parametrize(
    ("units", "size"),
    [
        (0, 1), (1, 1), (2, 2), (3, 4), (5, 4), (6, 8), (11, 8), (12, 16), (45, 32), (46, 64),
        (64, 64), (90, 64), (91, 128), (1000, 1024), (1448, 1024), (1449, 2048), (60_000, 65_536),
    ],
)  # fmt: skip
def test_a_size_class_is_the_power_of_two_nearest_in_ratio(units, size):
    assert public_size_class(units) == size


def test_a_size_class_tells_little_about_the_size():
    for units in range(1, 3000):
        size = public_size_class(units)
        assert size & (size - 1) == 0
        assert 1 / math.sqrt(2) <= size / units <= math.sqrt(2)
