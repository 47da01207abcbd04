"""The best split, against a search over records one by one; ties, and what noise may not decide."""

import numpy as np
import pytest

from lepton_common.settings import TreeSettings
from lepton_server.strategies.splits import best_splits, best_value, levelled

RULES = TreeSettings(depth=2, bins=6, learning_rate=0.5, l2=1.0, min_gain=0.0, min_child_weight=1.0)


def cells(first, second, binned, bins=6):
    """Returns the sums of one node's records, shape [1, F, B] each."""
    sums = np.zeros((2, 1, binned.shape[1], bins))
    for g, h, row in zip(first, second, binned, strict=True):
        for feature, bin_ in enumerate(row):
            sums[:, 0, feature, bin_] += g, h
    return sums


def searched(first, second, binned, rules, bins=6):
    """Returns the gain of each split that is allowed, from XGBoost's equation 7."""

    def score(rows):
        return first[rows].sum() ** 2 / (second[rows].sum() + rules.l2)

    found = {}
    for feature in range(binned.shape[1]):
        for threshold in range(bins - 1):
            left = binned[:, feature] <= threshold
            if min(second[left].sum(), second[~left].sum()) >= rules.min_child_weight:
                all_ = np.ones(len(first), bool)
                gain = 0.5 * (score(left) + score(~left) - score(all_)) - rules.min_gain
                found[feature, threshold] = gain
    return found


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("changes", [{}, {"l2": 0.0}, {"min_gain": 0.8, "min_child_weight": 4.0}])
def test_the_best_split_is_that_of_a_search(seed, changes):
    rules = TreeSettings(**{**vars(RULES), **changes})
    rng = np.random.default_rng(seed)
    binned, second = rng.integers(6, size=(60, 4)), rng.uniform(0.05, 0.25, 60)
    first = rng.normal(0, 0.4, 60) + 0.1 * (binned[:, seed % 4] > 2)
    split = best_splits(*cells(first, second, binned), rules)
    found = searched(first, second, binned, rules)
    best = max(found, key=lambda place: found[place])
    if found[best] <= 0:
        assert split.gain[0] == 0
        return
    assert (split.feature[0], split.threshold[0]) == best
    assert split.gain[0] == pytest.approx(found[best])
    left = binned[:, best[0]] <= best[1]
    for side, value in zip((left, ~left), split.values[0], strict=True):
        step = -rules.learning_rate * first[side].sum() / (second[side].sum() + rules.l2)
        assert value == pytest.approx(step)


def test_of_splits_alike_up_to_rounding_the_first_is_taken():
    rng = np.random.default_rng(0)
    column = rng.integers(2, size=40) * 5  # all in the first bin or the last
    binned = np.stack([column, column, 5 - column], axis=1)
    first = np.where(column > 0, 0.5, -0.3) + rng.normal(0, 0.1, 40)
    sums = cells(first, np.full(40, 0.25), binned)
    for noise in (0, 1e-9):
        shaken = sums + noise * rng.normal(size=sums.shape)
        split = best_splits(*shaken, RULES)
        assert (split.feature[0], split.threshold[0]) == (0, 0)


def test_nothing_is_split_for_nothing():
    empty = np.zeros((3, 2, 6))
    assert not best_splits(empty, empty, RULES).gain.any()
    alike = np.full((1, 2, 6), 2.0)
    assert not best_splits(0 * alike, alike, RULES).gain.any()
    none = TreeSettings(**{**vars(RULES), "min_child_weight": 0.0, "l2": 0.0})
    assert np.isfinite(best_splits(empty, empty, none).values).all()


def test_a_child_that_noise_alone_could_be_is_none():
    first, second = np.zeros((1, 1, 6)), np.zeros((1, 1, 6))
    first[0, 0], second[0, 0] = [9, 0, 0, 0, 0, -9], [3, 0, 0, 0, 0, 40]
    assert best_splits(first, second, RULES).gain[0] > 0
    assert best_splits(first, second, RULES, noise=1.0).gain[0] == 0


def test_noise_never_chooses_a_child_below_its_weight():
    rng = np.random.default_rng(2)
    noise = rng.normal(0, 3.0, (2, 400, 3, 6))
    split = best_splits(*noise, RULES, noise=3.0)
    second = np.cumsum(noise[1], axis=2)
    chosen = np.flatnonzero(split.gain)
    left = second[chosen, split.feature[chosen], split.threshold[chosen]]
    assert (left >= 1 + 2 * 3 * 6**0.5).all()


def test_levelled_sums_agree_with_each_other_and_keep_their_mean():
    rng = np.random.default_rng(3)
    sums = rng.normal(size=(2, 5, 6))
    flat = levelled(sums)
    of_feature = flat.sum(2)
    assert of_feature == pytest.approx(np.repeat(of_feature[:, :1], 5, axis=1))
    assert of_feature[:, 0] == pytest.approx(sums.sum(2).mean(1))
    assert levelled(flat) == pytest.approx(flat)


def test_a_value_is_newtons_step():
    assert best_value(np.array([6.0]), np.array([2.0]), RULES) == pytest.approx([-1.0])
