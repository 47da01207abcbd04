"""Tests that the mean is exact and knows no order."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lepton_common.errors import UpdateInvalid
from lepton_server.rounds.exact_mean import ExactMean

_UPDATES = st.lists(
    arrays.arrays(np.float32, 5, elements=st.floats(-(2.0**20), 2.0**20, width=32)),
    min_size=1,
    max_size=6,
)
_TINY = st.lists(
    arrays.arrays(np.float32, 5, elements=st.floats(-(2.0**-14), 2.0**-14, width=32)),
    min_size=1,
    max_size=6,
)


def _mean(updates, weights=None, order=None, *, missing=()):
    names = [f"s{index}" for index in range(len(updates))]
    weights = dict(zip(names, weights or [1] * len(names), strict=True))
    mean = ExactMean(len(updates[0]), weights, keep_each=True)
    for index in order if order is not None else range(len(updates)):
        if index not in missing:
            mean.add(names[index], updates[index])
    return mean


@given(_UPDATES, st.data())
def test_the_order_of_arrival_changes_no_bit(updates, data):
    weights = data.draw(
        st.lists(st.integers(1, 2**20), min_size=len(updates), max_size=len(updates))
    )
    order = data.draw(st.permutations(range(len(updates))))
    one, other = _mean(updates, weights), _mean(updates, weights, order)
    assert one.value().tobytes() == other.value().tobytes()
    assert [each.tobytes() for each in one.each()] == [each.tobytes() for each in other.each()]


def test_every_order_of_five_updates_gives_the_same_bits():
    rng = np.random.default_rng(0)
    updates = [rng.standard_normal(1000).astype(np.float32) * 10.0**e for e in range(-3, 2)]
    results = {
        _mean(updates, [1, 2, 3, 5, 7], order).value().tobytes()
        for order in itertools.permutations(range(5))
    }
    assert len(results) == 1


@given(_TINY, st.data())
def test_the_mean_is_the_float64_mean_within_two_to_the_minus_38(updates, data):
    weights = data.draw(st.lists(st.integers(1, 100), min_size=len(updates), max_size=len(updates)))
    expected = np.average(np.stack(updates).astype(np.float64), axis=0, weights=weights)
    value = _mean(updates, weights).value()
    assert value.dtype == np.float32
    assert np.abs(value - expected).max() <= 2.0**-38


@given(_UPDATES)
def test_large_values_are_exact_to_float32(updates):
    expected = np.stack(updates).astype(np.float64).mean(axis=0)
    largest = np.abs(np.stack(updates)).max(initial=1.0)
    assert np.abs(_mean(updates).value() - expected).max() <= 2.0**-23 * largest


def test_missing_sites_are_normalised_away():
    updates = [np.full(3, value, np.float32) for value in (1, 10, 100)]
    mean = _mean(updates, [1, 2, 5], missing=(1,))
    assert mean.count == 2
    np.testing.assert_allclose(mean.value(), (1 + 5 * 100) / 6, rtol=1e-6)
    np.testing.assert_allclose(_mean(updates, [1, 2, 5], missing=(0, 2)).value(), 10, rtol=1e-6)


def test_a_long_update_is_added_in_pieces():
    updates = [np.arange(100_001, dtype=np.float32), np.ones(100_001, np.float32)]
    np.testing.assert_array_equal(
        _mean(updates).value(), (np.arange(100_001, dtype=np.float64) + 1) / 2
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0**20 + 1, -(2.0**20) - 1, 3e38])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_an_update_that_cannot_be_summed_is_refused_and_adds_nothing(value, place):
    good, bad = np.arange(5, dtype=np.float32), np.zeros(5, np.float32)
    bad[place] = value
    mean = ExactMean(5, {"a": 1, "b": 1}, keep_each=True)
    with pytest.raises(UpdateInvalid):
        mean.add("b", bad)
    assert mean.count == 0
    mean.add("a", good)
    with pytest.raises(UpdateInvalid):
        mean.add("b", bad)
    np.testing.assert_array_equal(mean.value(), good)
    assert len(mean.each()) == 1


def test_the_bounds_themselves_do_not_overflow():
    for sign in (1, -1):
        updates = [np.full(2, sign * 2.0**20, np.float32)] * 7
        np.testing.assert_array_equal(_mean(updates, [3] * 7).value(), sign * 2.0**20)


def test_single_updates_come_in_order_of_names_and_only_if_kept():
    updates = [np.full(1, value, np.float32) for value in (3, 1, 2)]
    assert [float(each[0]) for each in _mean(updates, order=(2, 0, 1)).each()] == [3, 1, 2]
    mean = ExactMean(1, {"a": 1}, keep_each=False)
    mean.add("a", updates[0])
    assert mean.each() == []
