"""How well scores tell two groups apart, from counts in fixed public bins.

Scores are real numbers, such as logits. Their bins are of equal width in ``sigmoid(score / 4)``:
0.004 wide at a probability of one half (of 1,000 bins), and still fine at 0.000001, where a model
of something rare has all of its probabilities.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma, expit

from lepton_common.evaluation.inputs import Floats, Whole

_SOFTNESS = 4.0
_LEAST = 0.5  # records; with fewer, counts are noise


def bins_of(scores: Floats, bins: int) -> Whole:
    """Returns the bin of each score, int64; a score that is not a number counts as highest."""
    place = expit(np.nan_to_num(scores, nan=np.inf, posinf=np.inf, neginf=-np.inf) / _SOFTNESS)
    found: Whole = np.minimum((place * bins).astype(np.int64), bins - 1)
    return found


def histograms(scores: Floats, positive: NDArray[np.bool_], bins: int) -> Floats:
    """Returns the counts of negatives and positives in each bin, float64, shape [2, bins]."""
    places = bins_of(scores, bins) + bins * positive
    return np.bincount(places, minlength=2 * bins).astype(np.float64).reshape(2, bins)


def roc_auc(counts: Floats) -> float | None:
    """Returns the area under the ROC curve, where ties within a bin count half.

    Noise of mean 0 on the counts is no bias in the number of ordered pairs, so negative counts
    are left in; the result is kept in [0, 1].

    Args:
        counts: of negatives and positives by bin, shape [2, bins].

    Returns:
        The area; None where one of the groups is missing.
    """
    negative, positive = counts
    pairs = _whole(negative.sum()) * _whole(positive.sum())
    if pairs == 0:
        return None
    below = np.cumsum(negative) - 0.5 * negative
    return float(np.clip(positive @ below / pairs, 0.0, 1.0))


def pr_auc(counts: Floats) -> float | None:
    """Returns the average precision, where records within a bin have a random order.

    It is what scikit-learn's ``average_precision_score`` gives on average over those orders.
    Negative counts of noised histograms are evened out first, see `monotone`.

    Args:
        counts: of negatives and positives by bin, shape [2, bins].

    Returns:
        The average precision; None where one of the groups is missing.
    """
    negative, positive = (monotone(group)[::-1] for group in counts)
    if not _whole(negative.sum()) or not _whole(positive.sum()):
        return None
    both = positive + negative
    before, hits = np.cumsum(both) - both, np.cumsum(positive) - positive
    # The precision at a positive in place s of its bin, expected over the orders of the bin, is
    # (hits + 1 + (s - 1) slope) / (before + s); it is summed over s = 1..both.
    slope = np.clip(np.divide(positive - 1, both - 1, out=0 * both, where=both > 1), 0.0, 1.0)
    tail = digamma(before + both + 1) - digamma(before + 1)
    total = slope * both + (hits + 1 - slope * (before + 1)) * tail
    share = np.divide(positive, both, out=0 * both, where=both > 0)
    return float(np.clip(share @ total / positive.sum(), 0.0, 1.0))


def roc_curve(counts: Floats) -> tuple[Floats, Floats]:
    """Returns false and true positive rates from (0, 0) to (1, 1), float64, [bins + 1] each."""
    negative, positive = (_rising(group) for group in counts)
    return negative / max(negative[-1], 1e-12), positive / max(positive[-1], 1e-12)


def pr_curve(counts: Floats) -> tuple[Floats, Floats]:
    """Returns recall and precision from the highest scores down, float64; without empty bins."""
    negative, positive = (_rising(group)[1:] for group in counts)
    kept = negative + positive > _LEAST
    negative, positive = negative[kept], positive[kept]
    return positive / max(positive.max(initial=0.0), 1e-12), positive / (negative + positive)


def monotone(counts: Floats) -> Floats:
    """Returns noised counts without negative ones: the nearest whose running sum never falls.

    Clipping each count at 0 would add what is as much as the noise in every empty bin.
    """
    if counts.min(initial=0.0) >= 0:
        return counts
    from scipy.optimize import isotonic_regression

    total = max(float(counts.sum()), 0.0)
    running: NDArray[Any] = isotonic_regression(np.cumsum(counts)).x
    out: Floats = np.diff(np.clip(running, 0.0, total), prepend=0.0)
    return out


def _rising(counts: Floats) -> Floats:
    return np.concatenate(([0.0], np.cumsum(monotone(counts)[::-1])))


def _whole(total: float) -> float:
    return total if total >= _LEAST else 0.0
