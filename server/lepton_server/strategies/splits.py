"""The best split of each open node, found in sums of derivatives over bins (XGBoost's gain)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lepton_common.settings import TreeSettings

_ALIKE = 1e-6  # gains that differ by so little of the scores that they are made of
_TINY = 1e-12
Sums = NDArray[np.float64]


class Splits(NamedTuple):
    """The best split of each of m nodes; of one that does not split the gain is 0.

    Attributes:
        gain: shape [m].
        feature: by which it splits, int64, shape [m].
        threshold: last bin that goes left, int64, shape [m].
        values: best output of the records on the left, and on the right, shape [m, 2].
    """

    gain: Sums
    feature: NDArray[np.int64]
    threshold: NDArray[np.int64]
    values: Sums


def best_splits(first: Sums, second: Sums, rules: TreeSettings, noise: float = 0.0) -> Splits:
    """Returns the best split of each node (Chen and Guestrin 2016, equation 7).

    Of splits that are as good as the best up to rounding, the one by the first feature is taken,
    and of those the one at the first bin: so it does not matter how sites were added up.

    Args:
        first: sums of g in each cell, shape [m, F, B].
        second: sums of h, likewise.
        rules: least gain and weight, and regularisation.
        noise: standard deviation of the noise on each sum of h. A child whose weight noise alone
            could explain is none.
    """
    nodes, _, bins = first.shape
    left = np.cumsum(first, axis=2)[..., :-1], np.cumsum(second, axis=2)[..., :-1]
    whole = first.sum(2, keepdims=True), second.sum(2, keepdims=True)
    right = whole[0] - left[0], whole[1] - left[1]
    least = max(rules.min_child_weight, _TINY) + 2 * noise * bins**0.5
    allowed = (left[1] >= least) & (right[1] >= least)
    children = _score(*left, rules.l2) + _score(*right, rules.l2)
    gains = 0.5 * (children - _score(*whole, rules.l2)) - rules.min_gain
    gains = np.where(allowed, gains, -np.inf).reshape(nodes, -1)
    scores = np.where(allowed, children, 0.0).reshape(nodes, -1).max(1, initial=0.0)
    best = gains.max(1, initial=-np.inf)
    # The first that is good enough: argmax of what is true or false.
    place = (gains >= (best - _ALIKE * scores)[:, None]).argmax(1)
    node = np.arange(nodes)
    gain = np.maximum(np.where(best > 0, gains[node, place], 0.0), 0.0)
    feature, threshold = np.divmod(place, max(1, bins - 1))
    values = [
        best_value(side[0][node, feature, threshold], side[1][node, feature, threshold], rules)
        for side in (left, right)
    ]
    return Splits(gain, feature, threshold, np.stack(values, axis=1))


def best_value(first: Sums, second: Sums, rules: TreeSettings) -> Sums:
    """Returns what is added to the output of records with these sums, learning rate included."""
    step: Sums = -rules.learning_rate * first / np.maximum(second + rules.l2, _TINY)
    return step


def levelled(sums: Sums) -> Sums:
    """Returns noised sums in which all features tell of as much in a node, shape [m, F, B].

    Each record is in one bin of each feature, so each feature's bins add up to the same; what noise
    says otherwise is taken back from all of a feature's bins alike, which is nearest in squares.
    """
    of_feature = sums.sum(2, keepdims=True)
    result: Sums = sums + (of_feature.mean(1, keepdims=True) - of_feature) / sums.shape[2]
    return result


def _score(first: Sums, second: Sums, l2: float) -> Sums:
    score: Sums = first**2 / np.maximum(second + l2, _TINY)
    return score
