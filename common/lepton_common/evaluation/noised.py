"""Figures of a noised sum of statistics, each with what the noise may have done to it.

All of it is computed from what was released, so it costs no privacy.
"""

import numpy as np

from lepton_common.evaluation.inputs import Floats
from lepton_common.evaluation.statistics import Statistics

_DRAWS = 100
_LEAST = 3.0  # errors of the count of people, below which a share of them means nothing
_SHIFT = 1.0 / (2.0**0.5 - 1.0)
_DEFINED = 0.9  # share of the draws that must define a figure

Figure = dict[str, float] | None


def noised_figures(
    statistics: Statistics, vector: Floats, noise: float
) -> tuple[dict[str, float], dict[str, Figure]]:
    """Returns the number of people, and each figure that a sum defines, with their errors.

    A figure is None where the noise drowns it.

    The error is how far the figure moves when as much noise is added once more, of which 100
    draws are tried: the root mean square of their spread and of their shift to one side. A sum of
    distances, such as a calibration error, only grows by noise: by s where there was no distance,
    but a second time by (sqrt(2) - 1) s alone. So shifts count by 1 / (sqrt(2) - 1).

    Args:
        statistics: kind of the problem.
        vector: the noised sum, shape [length].
        noise: standard deviation of the noise on each number; 0: none.
    """
    found, count = statistics.metrics(vector), statistics.count(vector)
    if noise == 0:
        exact: dict[str, Figure] = {name: _figure(value, 0.0) for name, value in found.items()}
        return _figure(count, 0.0), exact
    random = np.random.default_rng(0)  # no secret: what it is added to was released
    again = [
        (statistics.metrics(drawn), statistics.count(drawn))
        for drawn in (vector + random.normal(0.0, noise, len(vector)) for _ in range(_DRAWS))
    ]
    people = _figure(max(0.0, count), float(np.std([one for _, one in again])))
    if count < _LEAST * people["error"]:
        return people, dict.fromkeys(found)
    figures: dict[str, Figure] = {}
    for name, value in found.items():
        off = [metrics[name] - value for metrics, _ in again if name in metrics]
        sure = len(off) >= _DEFINED * _DRAWS
        error = float(np.hypot(np.std(off), _SHIFT * np.mean(off))) if sure else 0.0
        figures[name] = _figure(value, error) if sure else None
    return people, figures


def _figure(value: float, error: float) -> dict[str, float]:
    return {"value": value, "error": error}
