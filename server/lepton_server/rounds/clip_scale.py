"""Adaptive clipping of whole updates (Andrew et al. 2021): a bound that follows a quantile."""

import math

import numpy as np
from numpy.typing import NDArray

from lepton_common.summing import WITHIN

_RATE = 0.2
_LEAST, _MOST = 1e-6, 1e6  # what a site accepts
_NAME = "update_scale"


class ClipScale:
    """What updates are divided by before they are clipped to a fixed norm.

    Attributes:
        value: above 0; 1 before the first round, and always where no quantile is asked for.
    """

    def __init__(self, quantile: float | None) -> None:
        self.value, self._quantile = 1.0, quantile

    def learn(self, metrics: dict[str, float]) -> None:
        """Moves the scale by the noised share of the updates that were short enough."""
        if self._quantile is not None:
            # The share is noised, and may lie outside [0, 1].
            share = min(max(metrics[WITHIN], 0.0), 1.0)
            moved = self.value * math.exp(-_RATE * (share - self._quantile))
            self.value = min(max(moved, _LEAST), _MOST)

    def snapshot(self) -> dict[str, NDArray[np.generic]]:
        """Returns the scale, for the checkpoint."""
        return {} if self._quantile is None else {_NAME: np.array([self.value])}

    def restore(self, state: dict[str, NDArray[np.generic]]) -> None:
        """Takes over what `snapshot` returned."""
        if _NAME in state:
            self.value = float(state[_NAME].astype(np.float64)[0])
