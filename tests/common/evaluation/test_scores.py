"""Tests of areas and curves from counts: ties, and counts that noise made negative."""

import itertools

import numpy as np
import pytest
from sklearn import metrics as sk

from lepton_common.evaluation.scores import (
    bins_of,
    histograms,
    monotone,
    pr_auc,
    pr_curve,
    roc_auc,
    roc_curve,
)


def test_ties_in_a_bin_are_what_their_orders_come_to_on_average():
    counts = np.array([[2.0, 1.0, 0.0, 1.0], [0.0, 2.0, 1.0, 1.0]])
    # Of bins 1 and 3, every order of a positive's place among its equals; bins 0 and 2 have one.
    found = []
    for middle, top in itertools.product(set(itertools.permutations("npp")), ("np", "pn")):
        order = [*"nn", *middle, "p", *top]
        labels = [letter == "p" for letter in order]
        found.append(sk.average_precision_score(labels, np.arange(len(order))))
    assert pr_auc(counts) == pytest.approx(np.mean(found), abs=1e-12)
    scores = np.repeat(np.tile(np.arange(4), 2), counts.ravel().astype(int))
    labels = np.repeat([0, 1], counts.sum(axis=1).astype(int))
    assert roc_auc(counts) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)


def test_curves_run_through_scikit_learns_points():
    rng = np.random.default_rng(0)
    labels = rng.random(500) < 0.3
    scores = rng.normal(size=500) + labels
    counts = histograms(scores, labels, 100)
    binned = bins_of(scores, 100)
    false, true, _ = sk.roc_curve(labels, binned, drop_intermediate=False)
    x, y = roc_curve(counts)
    assert {*zip(false.round(9), true.round(9), strict=True)} == {
        *zip(x.round(9), y.round(9), strict=True)
    }
    precision, recall, _ = sk.precision_recall_curve(labels, binned)
    points = {*zip(recall[:-1].round(9), precision[:-1].round(9), strict=True)}
    assert points <= {*zip(*(axis.round(9) for axis in pr_curve(counts)), strict=True)}


def test_noised_counts_become_ones_that_can_be():
    rng = np.random.default_rng(1)
    for _ in range(50):
        true = rng.poisson(3.0, 60).astype(float)
        noised = true + rng.normal(size=60) * 4
        evened = monotone(noised)
        assert evened.min() >= 0.0
        assert evened.sum() <= max(noised.sum(), 0.0) + 1e-9
        assert np.abs(np.cumsum(evened) - np.cumsum(true)).max() < 4 * 4 * np.sqrt(60)
    assert np.array_equal(monotone(true), true)
    assert not monotone(np.array([-1.0, -2.0])).any()
    x, y = roc_curve(rng.normal(size=(2, 60)))
    for axis in (x, y, *pr_curve(rng.normal(size=(2, 60)))):
        assert ((axis >= 0) & (axis <= 1)).all()


def test_groups_that_are_missing_have_no_area():
    for missing in (np.array([[0.0, 0.0], [1.0, 2.0]]), np.array([[1.0, 2.0], [0.4, -3.0]])):
        assert roc_auc(missing) is None
        assert pr_auc(missing) is None
