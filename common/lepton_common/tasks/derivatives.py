"""What trees are grown from: a loss's first and second derivative by the output, and their bounds.

The bounds are public, and hold for each record whatever it is and whatever the output was.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from lepton_common.tasks.objectives import Binary, Objective, Regression

Values = NDArray[np.float64]
_LEAST_SHARE = 1e-3  # of a class, as the base takes it: noise may say that there is less than none


class Derivatives(ABC):
    """The derivatives of one kind of loss.

    With privacy a record adds (g, w h) / norm to one cell, whose length is 1 at most.

    Attributes:
        weight: w, by how much h counts beside g there.
        norm: public bound on the length of (g, w h).
    """

    weight: ClassVar[float]
    norm: ClassVar[float]

    def of(self, outputs: Values, labels: Values) -> tuple[Values, Values]:
        """Returns g and h of each record, within their bounds, shape [n] each.

        A record whose output is not a number has none.
        """
        outputs = np.where(np.isfinite(outputs), outputs, np.nan)
        first, second = self._of(outputs, labels)
        known = np.isfinite(first) & np.isfinite(second)
        first, second = np.where(known, first, 0.0), np.where(known, second, 0.0)
        length = np.hypot(first, self.weight * second)
        factor = np.minimum(1.0, self.norm / np.maximum(length, 1e-300))
        return first * factor, second * factor

    @abstractmethod
    def _of(self, outputs: Values, labels: Values) -> tuple[Values, Values]: ...

    @abstractmethod
    def base(self, first: float, second: float) -> float:
        """Returns the constant output that fits best, given the sums of g and h at the output 0."""

    @abstractmethod
    def moved(self, first: Values, second: Values, base: float) -> tuple[Values, Values]:
        """Returns sums of g and h at the output ``base``, given those at 0: no site is asked."""


class Logistic(Derivatives):
    """Of the negative log-likelihood of two classes: p - y, and p (1 - p).

    (1 - p)² (1 + 9 p²) is at most 1 for p in [0, 1], so that with a weight of 3 no part is longer
    than |g| may be by itself, and h is told at no price.
    """

    weight = 3.0
    norm = 1.0

    def _of(self, outputs: Values, labels: Values) -> tuple[Values, Values]:
        # A loop over numbers: one that takes several at once may round by where a number stands.
        from scipy.special import expit

        chance = expit(outputs)
        return chance - labels, chance * (1.0 - chance)

    def base(self, first: float, second: float) -> float:
        """Returns the log odds of class 1: at 0, h is a quarter of a record, g half less y."""
        count, ones = 4.0 * second, 2.0 * second - first
        if count <= 0:
            return 0.0
        share = min(max(ones / count, _LEAST_SHARE), 1 - _LEAST_SHARE)
        return math.log(share / (1 - share))

    def moved(self, first: Values, second: Values, base: float) -> tuple[Values, Values]:
        """Returns the sums there, by how many records there are of each class."""
        count, ones = 4.0 * second, 2.0 * second - first
        chance = 1 / (1 + math.exp(-base))
        return count * chance - ones, count * chance * (1 - chance)


class Squared(Derivatives):
    """Of half the squared error of a number in [-1, 1]: what the output is too high by, and 1.

    An error counts for 1 at most, half the public range, which is Huber's loss (1964).
    """

    weight = 0.5
    norm = math.sqrt(1.25)

    def _of(self, outputs: Values, labels: Values) -> tuple[Values, Values]:
        return np.clip(outputs - labels, -1.0, 1.0), np.ones_like(outputs)

    def base(self, first: float, second: float) -> float:
        """Returns the mean."""
        return 0.0 if second <= 0 else min(max(-first / second, -1.0), 1.0)

    def moved(self, first: Values, second: Values, base: float) -> tuple[Values, Values]:
        """Returns the sums there, as if no error were beyond its bound."""
        return first + second * base, second


def derivatives_of(objective: Objective) -> Derivatives | None:
    """Returns the derivatives of an objective's loss; None where no trees are grown for it."""
    kinds: dict[type[Objective], Derivatives] = {Binary: Logistic(), Regression: Squared()}
    return kinds.get(type(objective))
