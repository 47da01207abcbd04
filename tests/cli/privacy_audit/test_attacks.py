"""Membership inference and gradient inversion: strong without noise, weak with the plan's."""

from dataclasses import replace

import numpy as np
import pytest

from lepton_cli.privacy_audit.inversion import invert_gradient, likeness
from lepton_cli.privacy_audit.membership import attack, attack_membership, strongest


def test_losses_tell_members_only_without_noise(make_plan):
    plan, ticks = make_plan(1.0), []
    found = attack_membership(plan, 12, 1.0, advance=lambda: ticks.append(1))
    assert found.exposed.auc > 0.8
    assert found.exposed.true_positives[0] > 0.1
    assert 0.45 < found.private.auc < min(0.65, found.most.auc)
    assert all(
        mine <= most + 0.02
        for mine, most in zip(found.private.true_positives, found.most.true_positives, strict=True)
    )
    assert len(ticks) == 2


def test_an_attack_is_the_area_and_the_shares_of_its_curve():
    others = np.arange(1000.0)
    assert attack(others, others).auc == pytest.approx(0.5, abs=1e-3)
    assert attack(others, others).true_positives == (0.01, 0.001)
    assert attack(others - 5000, others) == attack(others - 1e9, others)
    assert attack(others - 5000, others).auc == 1.0
    assert attack(others - 5000, others).true_positives == (1.0, 1.0)
    assert attack(others + 5000, others).true_positives == (0.0, 0.0)


def test_the_strongest_attack_is_that_of_the_promise():
    nothing = strongest(0.0, 0.0)
    assert nothing.auc == pytest.approx(0.5)
    assert nothing.true_positives == pytest.approx((0.01, 0.001))
    found = strongest(1.0, 1e-5)
    assert found.true_positives == pytest.approx((np.e * 0.01 + 1e-5, np.e * 0.001 + 1e-5))
    # Randomised response: the area under two straight lines through (p, 1 - p).
    corner = 1 / (1 + np.e)
    assert strongest(1.0, 0.0).auc == pytest.approx(1 - corner)
    assert strongest(1e9, 0.0).auc == pytest.approx(1.0)


def test_a_picture_is_read_off_a_gradient_only_without_noise(make_plan):
    found = invert_gradient(make_plan(3.0))
    assert found.without_noise.cosine > 0.999
    assert found.without_noise.psnr_db > 60
    assert abs(found.with_noise.cosine) < 0.3
    assert found.with_noise.psnr_db < 15


def test_next_to_no_noise_hides_nothing(make_plan):
    found = invert_gradient(replace(make_plan(), noise_multiplier=1e-5))
    assert found.with_noise.cosine > 0.99


def test_likeness_is_of_shape_and_of_values():
    picture = np.array([0.0, 0.5, 1.0])
    assert likeness(picture, picture).cosine == pytest.approx(1.0)
    assert likeness(picture, picture).psnr_db == pytest.approx(120.0)
    assert likeness(1 - picture, picture).cosine == pytest.approx(-1.0)
    assert likeness(picture + 0.1, picture).psnr_db == pytest.approx(20.0)
    assert likeness(np.full(3, 0.5), picture).cosine == 0.0
