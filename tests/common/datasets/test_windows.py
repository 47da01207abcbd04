"""Tests of windows: which steps they hold, and values by public ranges and back."""

import numpy as np
import pytest

from lepton_common.datasets.windows import scaled, unscaled, windows

_SERIES = np.arange(20.0).reshape(10, 2)


@pytest.mark.parametrize(("width", "stride", "starts"), [(4, 1, range(7)), (4, 3, (0, 3, 6)),
                                                         (10, 5, (0,)), (3, 8, (0,))])  # fmt: skip
def test_windows_are_consecutive_steps_of_all_channels(width, stride, starts):
    cut = windows(_SERIES, width, stride)
    assert cut.shape == (len(list(starts)), width, 2)
    for window, start in zip(cut, starts, strict=True):
        assert (window == _SERIES[start : start + width]).all()
    cut[:] = 0
    assert _SERIES[-1, -1] == 19  # a copy


def test_a_series_shorter_than_a_window_has_none():
    assert windows(_SERIES, 11, 1).shape == (0, 11, 2)


def test_scaling_is_linear_by_the_range_clips_and_goes_back():
    low, high = np.array([0.0, -10.0]), np.array([4.0, 10.0])
    values = np.array([[0.0, 10.0], [1.0, 5.0], [9.0, -90.0]])
    assert scaled(values, low, high).tolist() == [[-1, 1], [-0.5, 0.5], [1, -1]]
    assert unscaled(scaled(values, low, high), low, high)[:2].tolist() == values[:2].tolist()
