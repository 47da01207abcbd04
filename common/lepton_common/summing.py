"""What a round of secure aggregation sums, and what binds it to its training request."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lepton_common.arrays import Vector
from lepton_common.messages import MaskedSum, PrivacyRequest, TrainRequest
from lepton_common.privacy.plan import SharedNoise
from lepton_common.secagg.compression import Rotation, draw_positions, rotated_size
from lepton_common.secagg.encoding import tagged_hash
from lepton_common.secagg.spec import RoundSpec
from lepton_common.strict import to_json

LARGEST_METRIC = 8.0  # larger ones count as this much
WITHIN = "within_clip"  # share of the sites whose updates were short enough
_COUNT_SHARE = 0.4  # of the update's bound: 2 % more noise, and a count good to 2.5 / n per sigma


class Summed(Protocol):
    """What becomes of a round's sum.

    Attributes:
        dimension: d, number of values in a vector.
    """

    dimension: int

    def mean(
        self, spec: RoundSpec, total: NDArray[np.float64], weight: float
    ) -> tuple[Vector, dict[str, float]]:
        """Returns the mean update, float32, shape [size], and the means of the metrics.

        Args:
            spec: the round.
            total: the sum, shape [d].
            weight: the sum of the sites' weights.
        """


class NoisySum:
    """How sites' noised parts add up: to a step of SGD over all samples, or to a mean update."""

    def __init__(self, request: TrainRequest, form: MaskedSum, size: int) -> None:
        """Takes the request of the round and the number of weights in its model."""
        self.dimension = size + len(summed_metrics(request))
        self._request, self._form, self._size = request, form, size

    def mean(
        self, spec: RoundSpec, total: NDArray[np.float64], weight: float
    ) -> tuple[Vector, dict[str, float]]:
        """Returns the step; see `Summed`."""
        asked = self._request.privacy
        assert asked is not None, "without privacy nothing is noised"
        # Weights are public sizes or 1, so this is the batch that is expected of all, or a count.
        plan = asked.plan("", max(self._form.weights.values()), shared_noise(spec))
        mean = total * (plan.grid / (plan.denominator * weight))
        recipe, whole = self._request.recipe, asked.mode == "site"
        factor = recipe.update_scale if whole else -recipe.learning_rate
        if self._request.statistics is not None or self._request.grows_trees:
            factor = 1.0  # the sites' own mean, which is no step
        values = (factor * mean[: self._size]).astype(np.float32)
        if not asked.count_within:
            return values, {}
        return values, {WITHIN: float(mean[-1] / count_unit(plan.clipping_norm) + 0.5)}


class SummedForm:
    """How updates become the vectors that a round sums, and their sum a mean again.

    Attributes:
        metrics: names of the metrics that ride behind the update; none with DP.
        dimension: d, number of values in a vector.
    """

    def __init__(self, request: TrainRequest, form: MaskedSum, size: int) -> None:
        """Takes the request of the round and the number of weights in its model."""
        self.metrics = summed_metrics(request)
        self._form, self._size = form, size
        self._sent = max(1, math.ceil(form.coordinates * size))
        values = rotated_size(self._sent) if form.rotate else self._sent
        self.dimension = values + len(self.metrics)

    def vector(
        self, spec: RoundSpec, update: Vector, metrics: Iterable[float], site: str
    ) -> Vector:
        """Returns what a site masks, float32, shape [d].

        Args:
            spec: the round.
            update: float32, shape [size].
            metrics: one value for each of `metrics`.
            site: the site's name, for its public weight.
        """
        values = update if self._sent == self._size else update[self._positions(spec)]
        if self._form.rotate:
            values = Rotation(spec.hash, self._sent).forward(values)
        # A clip that suits the update must not cut the metrics, so these fill it by themselves.
        behind = np.array([*metrics], np.float32) * np.float32(spec.clip / LARGEST_METRIC)
        share = np.float32(weight_share(self._form.weights, site))
        vector: Vector = np.concatenate([values, behind]) * share
        return vector

    def unsent(self, spec: RoundSpec, update: Vector) -> Vector:
        """Returns what of an update `vector` leaves out: the residual of error feedback."""
        left = update.copy()
        left[self._positions(spec)] = 0
        return left

    def mean(
        self, spec: RoundSpec, total: NDArray[np.float64], weight: float
    ) -> tuple[Vector, dict[str, float]]:
        """Returns mean update and metrics; see `Summed`."""
        mean = total / weight
        values = mean[: len(mean) - len(self.metrics)].astype(np.float32)
        behind = mean[len(values) :] * (LARGEST_METRIC / spec.clip)
        metrics = dict(zip(self.metrics, map(float, behind), strict=True))
        if self._form.rotate:
            values = Rotation(spec.hash, self._sent).inverse(values)
        if self._sent == self._size:
            return values, metrics
        update = np.zeros(self._size, np.float32)
        update[self._positions(spec)] = values
        return update, metrics

    def _positions(self, spec: RoundSpec) -> NDArray[np.int64]:
        return draw_positions(spec.hash, self._size, self._sent)


def summed_as(request: TrainRequest, form: MaskedSum, size: int) -> Summed:
    """Returns what becomes of the sum that a round asks for, given the weights in its model."""
    shared = request.privacy is not None and request.privacy.mode != "record"
    return (NoisySum if shared else SummedForm)(request, form, request.answered(size))


def shared_noise(spec: RoundSpec) -> SharedNoise:
    """Returns whose noise counts in a round's sum.

    Raises:
        PlanError: no noise is certain.
    """
    return SharedNoise(len(spec.roster), spec.min_survivors, spec.colluders, spec.dimension)


def run_id_of(run: str) -> bytes:
    """Returns the 16 bytes that name a run in SA1."""
    return hashlib.sha256(run.encode()).digest()[:16]


def most_of_a_cell(public_size: int) -> float:
    """Returns the most that one cell of a site's sums over people comes to, as all may know.

    A size class is the nearest power of two, so a site has less than twice as many people; each
    adds 1 at most.
    """
    return 2.0 * public_size


def weight_share(weights: Mapping[str, int], site: str) -> float:
    """Returns by how much a site scales its values in a masked sum, at most 1."""
    return weights[site] / max(weights.values())


def bind(request: TrainRequest) -> bytes:
    """Returns the 32 bytes that bind a round of secure aggregation to its training request."""
    return tagged_hash("app", to_json(request).encode())


def summed_metrics(request: TrainRequest) -> tuple[str, ...]:
    """Returns the metrics that ride behind the update; with DP none but a noised count."""
    if request.privacy is None:
        return () if request.statistics else ("train_loss",)
    return (WITHIN,) if request.privacy.count_within else ()


def update_bound(clipping_norm: float) -> float:
    """Returns the bound on an update behind which a count rides, both within ``clipping_norm``."""
    return clipping_norm / math.sqrt(1 + _COUNT_SHARE**2 / 4)


def count_unit(clipping_norm: float) -> float:
    """Returns by how much the count's value differs between yes and no."""
    return _COUNT_SHARE * update_bound(clipping_norm)


def bind_layout(request: TrainRequest) -> bytes:
    """Returns the 32 bytes that name all that is summed in a masked round."""
    metrics = (metric.encode() for metric in summed_metrics(request))
    return tagged_hash("layout", bytes.fromhex(request.layout), *metrics)


def bind_privacy(request: PrivacyRequest | None) -> bytes:
    """Returns the differential privacy in force, as a round's specification names it."""
    return to_json(request).encode() if request else b"none"
