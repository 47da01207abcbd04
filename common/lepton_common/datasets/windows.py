"""Cuts series into windows, and scales values by their public ranges."""

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


def windows(series: Values, width: int, stride: int) -> Values:
    """Returns windows of consecutive steps.

    Args:
        series: shape [steps, channels].
        width: steps of a window.
        stride: steps from the start of one window to that of the next.

    Returns:
        shape [n, width, channels]; none where the series is shorter than a window.
    """
    if len(series) < width:
        return np.zeros((0, width, series.shape[1]))
    views = np.lib.stride_tricks.sliding_window_view(series, width, axis=0)
    return np.array(views[::stride].swapaxes(1, 2))


def scaled(values: Values, low: Values | float, high: Values | float) -> Values:
    """Returns values scaled from a public range to [-1, 1], and clipped to it."""
    return np.clip(2.0 * (values - low) / (high - low) - 1.0, -1.0, 1.0)


def unscaled(values: Values, low: Values | float, high: Values | float) -> Values:
    """Returns the values of a public range that `scaled` takes to the given ones."""
    return low + (values + 1.0) / 2.0 * (high - low)
