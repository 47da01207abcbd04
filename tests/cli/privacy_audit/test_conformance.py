"""Conformance: an honest installation passes every check, a broken one fails the right ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from lepton_cli.privacy_audit import checks
from lepton_cli.privacy_audit.conformance import audit_conformance
from lepton_cli.privacy_audit.randomness import audit_randomness
from lepton_client.training import bookkeeping, opacus_gradients, private
from lepton_client.training.opacus_gradients import OpacusGradients
from lepton_common.privacy.noise import SecretRandom


def _failed(found):
    return {check.name for check in found if not check.passed}


@pytest.fixture
def few(monkeypatch):
    """One model is enough to show what is broken in all."""
    monkeypatch.setattr("lepton_cli.privacy_audit.made_up.MODELS", ("logistic",))


def test_honest_gradients_pass(make_plan):
    ticks = []
    found = audit_conformance(make_plan(), advance=lambda: ticks.append(1))
    assert not _failed(found)
    assert len({check.name for check in found}) == len(found) == 12
    assert len(ticks) == 2


def test_honest_randomness_passes(make_plan):
    found = audit_randomness(make_plan())
    assert not _failed(found)
    assert len({check.name for check in found}) == len(found) == 18


@pytest.mark.parametrize(
    ("way", "names"),
    [
        ("noise 2 % too small", {"noise: standard deviation"}),
        ("seeded noise", {"noise: deaf to torch.manual_seed and numpy.random.seed"}),
        pytest.param(
            "noise without tails", {"noise: tail beyond 3.5 deviations"}, marks=pytest.mark.slow
        ),
        pytest.param(
            "one noise for all steps",
            {"noise: fresh in each of 16 steps of a round"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "Laplace noise",
            {"noise: normal distribution (Kolmogorov and Smirnov)"},
            marks=pytest.mark.slow,
        ),
        ("batches of fixed size", {"sampling: sizes of batches, so records independently"}),
        (
            "shuffled epochs",
            {
                "sampling: independent from round to round",
                "sampling: sizes of batches, so records independently",
            },
        ),
        pytest.param(
            "one batch for all steps",
            {"sampling: fresh in each of 16 steps of a round"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "records sampled together",
            {"sampling: sizes of batches, so records independently"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_broken_randomness_fails(make_plan, break_it, way, names):
    plan = make_plan()
    break_it(way)
    assert names <= _failed(audit_randomness(plan))


def test_the_same_noise_in_every_step_fails(make_plan, monkeypatch):
    fixed = np.random.default_rng(1).normal(size=30_000)
    monkeypatch.setattr(
        SecretRandom, "add_gaussian", lambda self, values, dev: values + dev * fixed[: len(values)]
    )
    assert "noise: independent from step to step" in _failed(audit_randomness(make_plan()))


def test_integer_noise_of_a_coarser_law_fails(make_plan, monkeypatch):
    def rounded(random, variance, count):
        return np.rint(variance**0.5 * random.gaussian(count)).astype(np.int64)

    monkeypatch.setattr("lepton_cli.privacy_audit.randomness.skellam", rounded)
    failed = _failed(audit_randomness(make_plan()))
    assert "Skellam noise of variance 4: distribution" in failed
    assert not any("268435456" in name for name in failed)  # where the two laws are the same


@pytest.mark.usefixtures("few")
def test_a_broken_clipper_fails(make_plan, break_it):
    break_it("broken clipper")
    failed = _failed(audit_conformance(make_plan()))
    assert "sensitivity, book-keeping: one unit more or less" in failed
    assert "sensitivity, opacus: one unit more or less" not in failed


@pytest.mark.usefixtures("few")
def test_clipping_rows_in_the_place_of_units_fails(make_plan, monkeypatch):
    honest = bookkeeping.ClippedGradients.sum

    def by_row(self, losses, features, labels, *, clipping_norm, **units):
        return honest(self, losses, features, labels, clipping_norm=clipping_norm)

    monkeypatch.setattr(bookkeeping.ClippedGradients, "sum", by_row)
    failed = _failed(audit_conformance(make_plan()))
    assert "sensitivity, book-keeping: one unit more or less" in failed


@pytest.mark.usefixtures("few")
def test_a_record_that_is_not_finite_and_spreads_fails(make_plan, monkeypatch):
    def unchecked(
        self, losses, features, labels, *, clipping_norm, unit_of_row=None, units=None, mask=None
    ):
        each = self._record_gradients(losses, features, labels).double()[mask]
        unit_of_row = None if unit_of_row is None else unit_of_row[mask]
        if unit_of_row is not None:
            each = each.new_zeros(units, each.shape[1]).index_add_(0, unit_of_row, each)
        norms = each.norm(dim=1, keepdim=True)
        return (each * (clipping_norm / norms.clamp(min=1e-30)).clamp(max=1.0)).sum(0)

    monkeypatch.setattr(OpacusGradients, "sum", unchecked)
    failed = _failed(audit_conformance(make_plan()))
    assert failed >= {
        "not finite, opacus: such a record counts as zero",
        "empty and NaN batches, opacus: the sum is zero",
        "sensitivity, opacus: one unit more or less",
    }
    assert not any("book-keeping" in name for name in failed)


@pytest.mark.usefixtures("few")
def test_a_random_record_for_an_empty_batch_fails(make_plan, monkeypatch):
    honest = private.clipped_sum

    def never_empty(engine, task, records, units, *more):
        return honest(engine, task, records, units or [np.array([0])], *more)

    monkeypatch.setattr("lepton_cli.privacy_audit.made_up.clipped_sum", never_empty)
    failed = _failed(audit_conformance(make_plan()))
    assert "empty and NaN batches, book-keeping: the sum is zero" in failed


@pytest.mark.usefixtures("few")
def test_a_step_that_writes_buffers_fails(make_plan, monkeypatch):
    honest = bookkeeping.ClippedGradients.__exit__

    def counts(self, *error):
        for name, buffer in self._module.named_buffers():
            if name == "seen":
                buffer.add_(1)
        honest(self, *error)

    monkeypatch.setattr(bookkeeping.ClippedGradients, "__exit__", counts)
    assert _failed(audit_conformance(make_plan())) == {"buffers: unchanged by a step"}


@pytest.mark.usefixtures("few")
def test_hooks_and_gradients_that_stay_fail(make_plan, monkeypatch):
    def stays(self, *_):
        self._hooked.to_standard_module()
        for parameter in self._module.parameters():
            vars(parameter)["grad_sample"] = torch.zeros(1)

    monkeypatch.setattr(opacus_gradients.OpacusGradients, "__exit__", stays)
    failed = _failed(audit_conformance(make_plan()))
    assert "left-overs: hooks and records' gradients are gone" in failed


@pytest.mark.usefixtures("few")
def test_layers_that_mix_records_let_through_fail(make_plan, monkeypatch):
    monkeypatch.setattr(bookkeeping, "_refuse_mixing", lambda *_: None)
    assert _failed(audit_conformance(make_plan())) == {"layers that mix records: refused"}


@pytest.mark.slow
def test_views_that_are_clipped_one_by_one_fail(make_plan, monkeypatch):
    honest = private.clipped_sum

    def each(engine, task, records, units, batch_size, plan, views=None):
        count = views.count if views else 1
        plan = replace(plan, clipping_norm=count * plan.clipping_norm)
        return honest(engine, task, records, units, batch_size, plan, views)

    monkeypatch.setattr("lepton_cli.privacy_audit.made_up.MODELS", ("cnn_small",))
    monkeypatch.setattr("lepton_cli.privacy_audit.made_up.clipped_sum", each)
    assert _failed(audit_conformance(make_plan(clipping_norm=0.1))) == {
        "views, book-keeping: those of one record are clipped as one",
        "views, opacus: those of one record are clipped as one",
    }


@pytest.mark.usefixtures("few")
def test_a_denominator_of_the_private_count_fails(make_plan, monkeypatch):
    honest = private.clipped_sum

    def mean(engine, task, records, units, batch_size, plan, *more):
        total = honest(engine, task, records, units, batch_size, plan, *more)
        return total * plan.denominator / max(1, len(units))

    monkeypatch.setattr(private, "clipped_sum", mean)
    failed = _failed(audit_conformance(make_plan()))
    assert "one record at a rate of 1: its clipped gradient" in failed


def test_chances_are_those_of_their_laws():
    assert checks.two_sided_normal(1.96) == pytest.approx(0.05, abs=1e-4)
    assert checks.two_sided_chi_square(100.0, 100) > 0.9
    assert checks.two_sided_chi_square(1.0, 100) < 1e-12
    assert checks.two_sided_chi_square(300.0, 100) < 1e-12
    assert checks.binomial(25, 100, 0.25) == pytest.approx(1.0)
    check = checks.by_chance("name", 2e-6, "measured", "expected")
    assert check.passed
    assert not checks.by_chance("name", 5e-7, "measured", "expected").passed
    assert not checks.by_chance("name", float("nan"), "measured", "expected").passed
    assert check.measured == "measured (p 2e-06)"
