"""Statistics of survival: whether who is said to be at greater risk has the event earlier."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lepton_common.errors import DataInvalid
from lepton_common.evaluation.inputs import (
    Floats,
    checked,
    floats,
    outputs_of,
    quantities_of,
    require,
)
from lepton_common.evaluation.scores import bins_of

if TYPE_CHECKING:
    import torch

_LEAST = 0.5  # pairs; with fewer, counts are noise
_ROWS = 512  # events compared with all records at a time


def hazard_risks(outputs: "torch.Tensor | NDArray[Any]") -> Floats:
    """Returns one risk a record from a model of discrete-time hazards, float64, shape [n].

    It is log((1 - m) / m), where m is the mean over time bins of the probability to survive to
    the end of the bin: the higher, the sooner the event is expected.

    Args:
        outputs: logits of the hazard in each time bin, shape [n, bins].
    """
    logits = np.clip(floats(outputs), -50.0, 50.0)
    mean = np.exp(np.cumsum(np.log(expit(-logits)), axis=1)).mean(axis=1)
    mean = np.clip(mean, 1e-15, 1.0 - 1e-15)
    risks: Floats = np.log((1.0 - mean) / mean)
    return risks


def concordance(times: Floats, events: NDArray[np.bool_], risks: Floats) -> float | None:
    """Returns Harrell's C-index (Harrell et al., 1982) of all comparable pairs.

    Two records are comparable if the one with the earlier time had the event, or if of two with
    the same time exactly one had it. Equal risks count half.

    Args:
        times: until the event or the end of observation, float64, shape [n].
        events: whether the event happened, shape [n].
        risks: higher where the event is expected sooner, float64, shape [n].

    Returns:
        The share in 0..1; None where no pair is comparable.
    """
    pairs, concordant = 0, 0.0
    happened = np.flatnonzero(events)
    for start in range(0, len(happened), _ROWS):
        rows = happened[start : start + _ROWS, None]
        later = (times > times[rows]) | ((times == times[rows]) & ~events)
        pairs += int(later.sum())
        concordant += float((later & (risks < risks[rows])).sum())
        concordant += 0.5 * float((later & (risks == risks[rows])).sum())
    return concordant / pairs if pairs else None


@dataclass(frozen=True)
class SurvivalStatistics:
    """Counts over records from which the C-index is found up to what bins hide.

    A C-index is about pairs of records, also of two sites, and is no sum over records. The vector
    holds counts by time bin, by whether the event happened, and by bin of the risk: pairs of the
    same time bin are then not comparable, and risks in one bin are equal. What happens after the
    horizon counts as not having happened by then. Pairs of nearly equal times are the hardest to
    order, so few time bins flatter a model: of Cox models' data with a C-index of 0.70 to 0.75, 50
    were wrong by up to 0.012 and 200 by up to 0.003.

    A risk that is not a number counts as the highest.

    Attributes:
        horizon: greatest time of interest in the label's unit, and public.
        time_bins: of equal width.
        risk_bins: of equal width in sigmoid(risk / 4).
    """

    horizon: float
    time_bins: int = 200
    risk_bins: int = 50

    def __post_init__(self) -> None:
        """Refuses parameters that make no sense."""
        require(0 < self.horizon < np.inf, f"The horizon is a time above 0, not {self.horizon}.")
        require(
            self.time_bins >= 2 and self.risk_bins >= 2,
            f"There are 2 bins or more, not {self.time_bins} of time and {self.risk_bins} of risk.",
        )

    @property
    def length(self) -> int:
        """Numbers in a vector."""
        return (self.time_bins + 1) * 2 * self.risk_bins

    @property
    def per_record_bound(self) -> float:
        """Greatest L2 norm of what one record adds: 1 in one bin."""
        return 1.0

    def of(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> Floats:
        """Returns the statistics of some records, float64, shape [length].

        Args:
            outputs: risks, such as the output of a Cox model or `hazard_risks`; shape [n].
            labels: time and 1 for an event or 0 for the end of observation, shape [n, 2].

        Raises:
            ModelMismatch: outputs of another shape.
            DataInvalid: labels of another shape, times below 0, or neither 0 nor 1.
        """
        risks, times, events = _parts(outputs, labels)
        after = times >= self.horizon
        place = np.minimum(times / self.horizon, 1.0) * self.time_bins  # the last: the horizon
        when, event = place.astype(np.int64), (events & ~after).astype(np.int64)
        shape = (self.time_bins + 1, 2, self.risk_bins)
        cells = np.ravel_multi_index((when, event, bins_of(risks, self.risk_bins)), shape)
        return np.bincount(cells, minlength=self.length).astype(np.float64)

    def count(self, vector: NDArray[Any]) -> float:
        """Returns how many records a sum of statistics is of; see `Statistics`."""
        return float(checked(vector, self.length).sum())

    def metrics(self, vector: NDArray[Any]) -> dict[str, float]:
        """Returns ``c_index`` from a sum of statistics, also a noised one; nothing without pairs.

        Raises:
            UpdateInvalid: the vector has another length or is not finite.
        """
        counts = checked(vector, self.length).reshape(-1, 2, self.risk_bins)
        events, everyone = counts[:, 1], counts.sum(axis=1)
        # Noise of mean 0 is no bias in the number of pairs, so negative counts are left in.
        later = np.cumsum(everyone[::-1], axis=0)[::-1] - everyone
        pairs = float((events.sum(axis=1) * later.sum(axis=1)).sum())
        if pairs < _LEAST:
            return {}
        concordant = float((events * (np.cumsum(later, axis=1) - 0.5 * later)).sum())
        return {"c_index": float(np.clip(concordant / pairs, 0.0, 1.0))}

    def exact(
        self, outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
    ) -> dict[str, float]:
        """Returns Harrell's ``c_index`` (see `concordance`), where all records are at hand."""
        risks, times, events = _parts(outputs, labels)
        found = concordance(times, events, np.nan_to_num(risks, nan=np.inf, posinf=np.inf))
        return {} if found is None else {"c_index": found}


def _parts(
    outputs: "torch.Tensor | NDArray[Any]", labels: "torch.Tensor | NDArray[Any]"
) -> tuple[Floats, Floats, NDArray[np.bool_]]:
    """Returns risks, times and events of records, shape [n] each."""
    risks = outputs_of(outputs, (None, 1))[:, 0]
    given = quantities_of(labels, (len(risks), 2))
    if len(given) and (given[:, 0].min() < 0 or not np.isin(given[:, 1], (0.0, 1.0)).all()):
        raise DataInvalid(
            "A survival label is a time of 0 or more and then 1 (event) or 0 (censored); "
            "check the columns of time and event."
        )
    return risks, given[:, 0], given[:, 1] == 1.0
