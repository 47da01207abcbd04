"""Positions and rotations that all sites of a round draw alike, held against plain references."""

import numpy as np
import pytest
from scipy.linalg import hadamard
from scipy.stats import kstest

from lepton_common.secagg.compression import BLOCK, Rotation, draw_positions, rotated_size

ROUND, OTHER = b"r" * 32, b"s" * 32
SIZES = [1, 2, 3, 5, 64, 1000, 4096, 4097, 10_000]


@pytest.mark.parametrize(("size", "count"), [(1, 1), (10, 1), (10, 9), (10, 10), (5000, 500)])
def test_positions_are_distinct_ascending_and_the_same_for_one_round_only(size, count):
    drawn = draw_positions(ROUND, size, count)
    assert len(drawn) == count
    assert drawn.min() >= 0
    assert drawn.max() < size
    assert (np.diff(drawn) > 0).all()
    np.testing.assert_array_equal(drawn, draw_positions(ROUND, size, count))
    if 1 < count < size // 2:
        assert set(drawn) != set(draw_positions(OTHER, size, count))


def test_each_position_is_drawn_equally_often():
    counts = np.zeros(50)
    for round_ in range(2000):
        counts[draw_positions(round_.to_bytes(32), 50, 10)] += 1
    # Each is binomial(2000, 0.2), with a standard deviation of 18.
    assert abs(counts - 400).max() < 4.5 * 18


def test_positions_that_tie_are_counted_once(monkeypatch):
    monkeypatch.setattr(
        "lepton_common.secagg.compression._words", lambda *_: np.array([7, 1, 7, 7, 2], "<u4")
    )
    np.testing.assert_array_equal(draw_positions(ROUND, 5, 3), [0, 1, 4])


@pytest.mark.parametrize("size", SIZES)
def test_a_rotation_is_orthogonal_and_undone_by_its_inverse(size):
    values = np.random.default_rng(1).normal(size=size).astype(np.float32)
    rotation = Rotation(ROUND, size)
    rotated = rotation.forward(values)
    assert rotated.dtype == np.float32
    assert len(rotated) == rotated_size(size)
    np.testing.assert_allclose(np.linalg.norm(rotated), np.linalg.norm(values), rtol=1e-5)
    np.testing.assert_allclose(rotation.inverse(rotated), values, atol=1e-5)


@pytest.mark.parametrize("size", [8, 4096, 2 * 4096])
def test_a_rotation_is_signs_and_the_hadamard_matrix_of_each_block(size):
    block = min(size, BLOCK)
    unit = np.zeros(size, np.float32)
    unit[3] = 1
    column = Rotation(ROUND, size).forward(unit)
    expected = hadamard(block)[3] / np.sqrt(block)
    assert np.allclose(column[:block], expected, atol=1e-6) or np.allclose(
        column[:block], -expected, atol=1e-6
    )
    assert not column[block:].any()


def test_one_large_value_is_spread_over_its_block():
    values = np.zeros(BLOCK, np.float32)
    values[17] = 64
    np.testing.assert_allclose(np.abs(Rotation(ROUND, BLOCK).forward(values)), 1, rtol=1e-5)


def test_rotated_values_look_gaussian_whatever_they_were():
    values = np.random.default_rng(2).exponential(size=BLOCK).astype(np.float32)
    rotated = Rotation(OTHER, BLOCK).forward(values)
    scale = np.linalg.norm(values) / np.sqrt(BLOCK)
    assert kstest(rotated / scale, "norm").pvalue > 0.001
    assert np.abs(rotated).max() < 5 * scale


def test_rounds_rotate_differently():
    values = np.ones(BLOCK, np.float32)
    assert not np.allclose(
        Rotation(ROUND, BLOCK).forward(values), Rotation(OTHER, BLOCK).forward(values)
    )
