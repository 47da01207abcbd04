"""Differentially private sums of statistics, for evaluation on private records.

Nothing is charged here: who releases a sum charges its event first.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import DataInvalid, PlanError
from lepton_common.evaluation.inputs import Floats, array_of
from lepton_common.evaluation.statistics import Statistics
from lepton_common.privacy.events import SampledGaussian
from lepton_common.privacy.noise import SecretRandom

if TYPE_CHECKING:
    import torch

_FINENESS = 2.0**20  # steps of the grid in a standard deviation of the noise, at least
_SLACK = 4.0  # steps that rounding may add to a unit's norm before it is rounded towards 0
_MULTIPLIERS = (0.05, 100.0)


@dataclass(frozen=True)
class NoisedSum:
    """A sum that may be released once its event is charged.

    Attributes:
        vector: float64, shape [length].
        event: what it costs every privacy unit, under the add-or-remove-one relation.
        standard_deviation: of the noise on each number.
    """

    vector: Floats
    event: SampledGaussian
    standard_deviation: float


def noised_sum(
    statistics: Statistics,
    outputs: "torch.Tensor | NDArray[Any]",
    labels: "torch.Tensor | NDArray[Any]",
    units: NDArray[np.int64] | None,
    clipping_norm: float,
    noise_multiplier: float,
) -> NoisedSum:
    """Returns the sum over privacy units of their clipped statistics, with noise.

    Each unit's statistics are scaled to an L2 norm of at most ``clipping_norm`` and rounded at
    random, without bias, to a grid of a power of two: whole counts stay exact. Where that rounding
    would exceed the bound, the unit is rounded towards 0. So the sum is of whole numbers, and one
    unit changes it by no more than the noise is made for. The Gaussian noise is rounded to whole
    numbers too: that is the same as rounding the noised sum, which costs nothing and leaves no low
    bits to attack (Mironov 2012). This holds if a record's outputs do not depend on who else is in
    its batch, not even in how they are rounded.

    Args:
        statistics: kind of the problem.
        outputs: of the model, shape [n, ...].
        labels: shape [n, ...].
        units: privacy unit of each record, shape [n]; None: each record is one.
        clipping_norm: L2 bound on one unit, 1e-6 to 1e4; ``statistics.per_record_bound`` clips none
            that has one record.
        noise_multiplier: standard deviation of the noise over what a unit can change, 0.05 to 100.

    Raises:
        PlanError: a bound that gives no guarantee.
        ModelMismatch: outputs of another shape.
        DataInvalid: labels of another shape, or not of this problem; units of another number.
    """
    least, most = _MULTIPLIERS
    if not least <= noise_multiplier <= most:
        raise PlanError(
            f"The noise multiplier of an evaluation lies in [{least}, {most:g}], "
            f"not {noise_multiplier}."
        )
    if not 1e-6 <= clipping_norm <= 1e4:
        raise PlanError(
            f"The clipping norm of an evaluation lies in [1e-6, 1e4], not {clipping_norm}."
        )
    grid = 2.0 ** math.floor(math.log2(noise_multiplier * clipping_norm / _FINENESS))
    most_steps = clipping_norm / grid + _SLACK
    random = SecretRandom()
    total = np.zeros(statistics.length, dtype=np.int64)
    outputs, labels = array_of(outputs), array_of(labels)
    names = np.arange(len(labels)) if units is None else units
    if not len(outputs) == len(labels) == len(names):
        raise DataInvalid(
            "Outputs, labels and privacy units should be of the same records, one each; "
            "check the column of the privacy unit."
        )
    order = np.argsort(names, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(names[order])) + 1):
        if len(rows):
            one = statistics.of(outputs[rows], labels[rows]) / grid
            total += _on_grid(one, clipping_norm / grid, most_steps, random)
    scale = noise_multiplier * most_steps
    noise = np.rint(random.gaussian(len(total), scale)).astype(np.int64)
    event = SampledGaussian(sample_rate=1.0, noise_multiplier=noise_multiplier, steps=1)
    vector = (total + noise).astype(np.float64) * grid
    return NoisedSum(vector, event, scale * grid)


def _on_grid(
    values: Floats, clipping: float, most: float, random: SecretRandom
) -> NDArray[np.int64]:
    """Returns values as whole numbers whose norm is at most ``most``, for ``most > clipping``."""
    norm = max(float(np.linalg.norm(values)), 1e-30)
    scaled = values * min(1.0, clipping / norm)
    floor = np.floor(scaled)
    up = random.uniform(len(scaled)) < scaled - floor
    rounded = floor.astype(np.int64) + up
    if int(rounded @ rounded) > most**2:
        rounded = np.trunc(scaled).astype(np.int64)
    return rounded
