"""Tests of noise that sites share: its law, what it is added to, and what a site refuses."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from toy_federation import Federation, masked_sum
from toy_site import MODEL, PERMISSIVE, PRIVACY, RECIPE, VECTOR, request, synthetic

from lepton_client import consent
from lepton_client.training.conformance import conform
from lepton_client.training.private import clip_update, noised, noisy_sum
from lepton_client.training.resident import resident_model
from lepton_common.errors import ConsentRefused, PlanError
from lepton_common.privacy.events import RoundedSkellam
from lepton_common.privacy.ledger_file import read_ledger
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import SHARE_VARIANCE, SharedNoise
from lepton_common.secagg.ring import whole_clip
from lepton_common.summing import NoisySum, shared_noise, update_bound
from lepton_common.tasks.catalog import find_task

DISTRIBUTED = replace(
    PRIVACY, mode="distributed", noise_multiplier=0.5, steps_per_round=1, max_steps=4
)
WHOLE = replace(DISTRIBUTED, mode="site", sample_rate=1.0, noise_multiplier=1.0, clipping_norm=0.5)
_SHARED = SharedNoise(sites=10, survivors=7, colluders=3, dimension=1000)


@pytest.fixture
def plan():
    """Returns a plan with shared noise."""
    return DISTRIBUTED.plan("row", 16, _SHARED)


def _spec(federation, asked):
    sites = len(federation.folders)
    return federation.spec(asked, clip=whole_clip(32, sites))


def test_ten_sites_pay_for_what_three_may_leave_out_and_three_may_drop(plan):
    # 1.58 times the noise of one trusted server, where noise of each its own would be 3.16 times.
    together = math.sqrt(10) * plan.own_noise / (plan.noise_multiplier * plan.clipping_norm)
    assert together == pytest.approx(1.58, abs=0.005)
    certain = math.sqrt(7 - 3) * plan.own_noise
    assert certain == pytest.approx(plan.noise_multiplier * plan.clipping_norm)
    event = plan.event()
    assert isinstance(event, RoundedSkellam)
    assert event.variance == 4 * SHARE_VARIANCE
    assert event.l2_sensitivity == pytest.approx(plan.clipping_norm / plan.grid)


def test_a_share_has_the_law_that_is_accounted_for(plan):
    drawn = noised(np.zeros(200_000), plan, SecretRandom()).astype(float)
    scale = math.sqrt(SHARE_VARIANCE)
    # 6 standard errors.
    assert abs(drawn.mean()) < 6 * scale / math.sqrt(len(drawn))
    assert drawn.var() == pytest.approx(SHARE_VARIANCE, rel=6 * math.sqrt(2 / len(drawn)))
    assert stats.kstest(drawn / scale, "norm").pvalue > 1e-9


def test_values_are_rounded_at_random_and_right_on_average(plan, monkeypatch):
    monkeypatch.setattr(
        "lepton_client.training.private.skellam",
        lambda random, variance, count: np.zeros(count, np.int64),
    )
    for value in (0.0, 0.25, -0.25, 7.9, -1e6 + 0.5):
        found = noised(np.full(40_000, value * plan.grid), plan, SecretRandom())
        assert set(np.unique(found)) <= {math.floor(value), math.floor(value) + 1}
        assert found.mean() == pytest.approx(value, abs=0.02)


def test_a_sum_is_that_of_clipped_gradients(plan, monkeypatch):
    monkeypatch.setattr(
        "lepton_client.training.private.skellam",
        lambda random, variance, count: np.zeros(count, np.int64),
    )
    plan = replace(plan, sample_rate=1.0)
    model = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=False)
    task, records = find_task("toy"), synthetic()
    engine = conform(model, task, (4,), 3, (64,))
    found = noisy_sum(model, task, records, VECTOR, RECIPE, plan, engine) * plan.grid
    expected = torch.zeros(model.layout.size, dtype=torch.float64)
    module = MODEL
    for features, label in zip(records.features, records.labels, strict=True):
        module.zero_grad()
        task.losses(module(features[None]), label[None]).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in module.parameters()]).double()
        expected += gradient * min(1.0, plan.clipping_norm / float(gradient.norm()))
    assert np.abs(found - expected.numpy()).max() <= 1.01 * plan.grid + 1e-5


def test_an_empty_sample_is_noise_alone(plan):
    plan = replace(plan, sample_rate=1e-9)
    model = resident_model("mlp", (4,), 3, torch.device("cpu"), channels_last=False)
    task = find_task("toy")
    engine = conform(model, task, (4,), 3, (64,))
    found = noisy_sum(model, task, synthetic(), VECTOR, RECIPE, plan, engine)
    assert 0 < np.abs(found).max() < 10 * math.sqrt(SHARE_VARIANCE)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_a_whole_update_is_scaled_to_its_bound(scale):
    update = (scale * np.random.default_rng(1).normal(size=500)).astype(np.float32)
    clipped = clip_update(update, 2.0)
    assert np.linalg.norm(clipped) <= 2.0 * (1 + 1e-12)
    cosine = clipped @ update / (np.linalg.norm(clipped) * np.linalg.norm(update))
    assert cosine == pytest.approx(1.0)
    if scale == 1e-3:
        assert np.allclose(clipped, update)


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_counts_as_nothing(odd):
    update = np.ones(5, np.float32)
    update[2] = odd
    assert not clip_update(update, 1.0).any()


def test_noise_is_shared_under_secure_aggregation_only(make_site):
    site = make_site()
    with pytest.raises(ConsentRefused, match="under secure aggregation only"):
        consent.check(request(privacy=DISTRIBUTED), site.file)


@pytest.mark.parametrize(
    ("floor", "accepted"), [(0.0, True), (0.35, True), (0.36, False), (1.0, False)]
)
def test_a_site_keeps_its_own_floor_of_noise(make_site, floor, accepted):
    federation = Federation(
        make_site, 4, policy=replace(PERMISSIVE, min_own_noise_multiplier=floor)
    )
    asked = federation.request(privacy=DISTRIBUTED)
    # Of four sites three are in any sum, and one of these may collude: 0.5 / sqrt(2).
    spec = federation.spec(asked, colluders=1, clip=whole_clip(32, 4))
    site = federation.open(1).file
    if accepted:
        assert consent.check(asked, site, spec).own_noise == pytest.approx(0.5 / math.sqrt(2))
    else:
        with pytest.raises(ConsentRefused, match="share of the noise"):
            consent.check(asked, site, spec)


def test_a_round_charges_for_the_noise_that_is_certain(make_site):
    federation = Federation(make_site, 4)
    asked = federation.request(privacy=DISTRIBUTED)
    server = federation.server(asked, colluders=1, clip=whole_clip(32, 4))
    server.run([1, 2, 3])
    site = federation.open(1)
    shared = shared_noise(server.spec)
    assert (shared.sites, shared.survivors, shared.colluders) == (4, 3, 1)
    contents = read_ledger(site.folder / "ledger.db", site.key.public_hex)
    (charge,) = [r for r in contents.records if r.kind == "charge"]
    assert charge.body["event"]["kind"] == "rounded_skellam"
    assert charge.body["event"]["variance"] == 2 * SHARE_VARIANCE
    assert charge.body["shared"]["survivors"] == 3


def test_the_sum_of_a_round_has_the_noise_of_all_who_answered(make_site):
    federation = Federation(make_site, 4)
    # Records weigh nothing beside this noise, so what is left is the noise.
    private = replace(DISTRIBUTED, noise_multiplier=1e4)
    asked = federation.request(privacy=private)
    total, _ = federation.server(asked, colluders=1, clip=whole_clip(32, 4)).run([1, 2, 3, 4])
    assert total.var() == pytest.approx(4 * SHARE_VARIANCE, rel=8 * math.sqrt(2 / len(total)))


@pytest.mark.parametrize("rate", [1e-9, 0.5])
def test_a_whole_site_is_in_every_sum_whatever_a_server_says(make_site, rate):
    private = replace(WHOLE, sample_rate=rate)
    with pytest.raises(PlanError, match="sample_rate"):
        private.plan("row", 16, _SHARED)
    federation = Federation(make_site, 4)
    asked = federation.request(privacy=private)
    with pytest.raises(PlanError, match="sample_rate"):
        consent.check(asked, federation.open(1).file, _spec(federation, asked))


def test_a_count_rides_behind_whole_updates_only():
    with pytest.raises(PlanError, match="in the mode site only"):
        replace(DISTRIBUTED, count_within=True).plan("row", 16, _SHARED)


@pytest.mark.parametrize("augmentations", [65, 1025, 10**13])
def test_views_beyond_what_fits_in_memory_are_refused(make_site, augmentations):
    federation = Federation(make_site, 4)
    recipe = replace(RECIPE, augmentations=augmentations)
    asked = federation.request(privacy=DISTRIBUTED, recipe=recipe)
    with pytest.raises(ConsentRefused, match=r"exceeds this site's 1024|hold all views"):
        consent.check(asked, federation.open(1).file, _spec(federation, asked))


def test_what_a_whole_site_spent_counts_for_whoever_comes(make_site):
    federation = Federation(make_site, 4)
    asked = federation.request(privacy=WHOLE)
    federation.server(asked, colluders=1, clip=whole_clip(32, 4)).run([1, 2, 3, 4])
    ledger = federation.open(1).ledger
    spent = ledger.epsilon(1e-5)
    assert spent > 0
    ledger.use_data("row", frozenset({b"somebody else 16"}))
    assert ledger.epsilon(1e-5) == spent


@pytest.mark.parametrize("private", [DISTRIBUTED, WHOLE])
def test_a_site_without_records_answers_like_any_other(make_site, private):
    federation = Federation(make_site, 4, rows=0)
    asked = federation.request(privacy=private)
    total, _ = federation.server(asked, colluders=1, clip=whole_clip(32, 4)).run([1, 2, 3, 4])
    assert total.std() == pytest.approx(2 * math.sqrt(SHARE_VARIANCE), rel=0.5)


@pytest.mark.parametrize("steps", [2, 3])
def test_more_than_one_step_a_round_is_no_plan(steps):
    with pytest.raises(PlanError, match="steps_per_round"):
        replace(DISTRIBUTED, steps_per_round=steps).plan("row", 16, _SHARED)


@pytest.mark.parametrize(("survivors", "colluders"), [(3, 3), (3, 5), (11, 3), (0, 0)])
def test_a_sum_without_certain_noise_is_no_plan(survivors, colluders):
    with pytest.raises(PlanError, match="no noise that is certain"):
        SharedNoise(sites=10, survivors=survivors, colluders=colluders, dimension=5)


def test_the_plan_must_say_whose_noise_counts():
    with pytest.raises(PlanError, match="whose noise counts"):
        DISTRIBUTED.plan("row", 16)
    with pytest.raises(PlanError, match="whose noise counts"):
        PRIVACY.plan("row", 16, _SHARED)


def test_a_whole_site_is_the_unit_where_updates_are_clipped_whole(make_site):
    federation = Federation(make_site, 4)
    asked = federation.request(privacy=WHOLE, recipe=replace(RECIPE, learning_rate=1e30))
    server = federation.server(asked, colluders=1, clip=whole_clip(32, 4))
    total, _ = server.run([1, 2, 3, 4])
    # Training diverged everywhere, which nobody can tell from the sum.
    plan = WHOLE.plan("row", 16, shared_noise(server.spec))
    assert np.abs(total * plan.grid).max() < 10 * 2 * plan.own_noise
    site = federation.open(1)
    contents = read_ledger(site.folder / "ledger.db", site.key.public_hex)
    assert [r.body["unit"] for r in contents.records if r.kind == "charge"] == ["site"]


@pytest.mark.parametrize(("scale", "within"), [(1e-4, 0.0), (1e4, 1.0)])
def test_a_count_of_short_updates_rides_within_the_same_bound(
    make_site, monkeypatch, scale, within
):
    monkeypatch.setattr(
        "lepton_client.training.private.skellam",
        lambda random, variance, count: np.zeros(count, np.int64),
    )
    federation = Federation(make_site, 4)
    private = replace(WHOLE, count_within=True)
    recipe = replace(RECIPE, update_scale=scale)
    asked = federation.request(privacy=private, recipe=recipe)
    size = len(VECTOR)
    server = federation.server(asked, colluders=1, clip=whole_clip(32, 4), dimension=size + 1)
    total, _ = server.run([1, 2, 3, 4])
    update, metrics = NoisySum(asked, asked.masked, size).mean(server.spec, total, 4.0)
    assert metrics["within_clip"] == pytest.approx(within, abs=1e-3)
    plan = private.plan("row", 16, shared_noise(server.spec))
    # Each site's own part, count and all, is no longer than the norm that is charged for.
    assert np.linalg.norm(total) * plan.grid <= 4 * plan.clipping_norm + 4 * math.sqrt(size)
    trained = np.linalg.norm(update)
    assert trained == pytest.approx(scale * update_bound(0.5), rel=0.05) or within
    assert trained > 0


def test_weights_of_another_kind_change_nothing_of_the_noise(make_site):
    federation = Federation(make_site, 4)
    form = masked_sum({folder.name: 16 for folder in federation.folders})
    asked = federation.request(privacy=DISTRIBUTED, masked=form)
    server = federation.server(asked, colluders=1, clip=whole_clip(32, 4))
    total, _ = server.run([1, 2, 3, 4])
    assert total.std() > math.sqrt(SHARE_VARIANCE)
