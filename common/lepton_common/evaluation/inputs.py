"""What evaluation takes in, as NumPy arrays of the expected form."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lepton_common.errors import DataInvalid, ModelMismatch, SettingsError, UpdateInvalid

if TYPE_CHECKING:
    import torch

Floats = NDArray[np.float64]
Whole = NDArray[np.int64]


def array_of(values: "torch.Tensor | NDArray[Any]") -> NDArray[Any]:
    """Returns a tensor of any device as an array of its own type."""
    # Torch is not imported for this: who evaluates arrays does not wait for it.
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()


def floats(values: "torch.Tensor | NDArray[Any]") -> Floats:
    """Returns a tensor of any device, or an array, as float64."""
    return np.asarray(array_of(values), dtype=np.float64)


def log_sum_exp(values: Floats) -> Floats:
    """Returns log(sum(exp)) over the last axis, which holds a finite value; shape [n]."""
    # SciPy's has a cost for each call that shows when people are summed one by one.
    highest = values.max(axis=-1)
    out: Floats = highest + np.log(np.exp(values - highest[..., None]).sum(axis=-1))
    return out


def outputs_of(values: "torch.Tensor | NDArray[Any]", shape: Sequence[int | None]) -> Floats:
    """Returns a model's outputs as float64.

    Args:
        values: outputs; a missing last axis of length 1 is taken as there.
        shape: expected; None: any length.

    Raises:
        ModelMismatch: they have another shape.
    """
    found = floats(values)
    if found.ndim == len(shape) - 1 and shape[-1] == 1:
        found = found[..., None]
    if not _fits(found.shape, shape):
        raise ModelMismatch(
            f"A model's outputs should have shape {_shown(shape)}, not {found.shape}; "
            "check that model and task belong together."
        )
    return found


def labels_of(
    values: "torch.Tensor | NDArray[Any]", shape: Sequence[int], low: int, high: int
) -> Whole:
    """Returns labels that are whole numbers, int64.

    Raises:
        DataInvalid: they have another shape, or one lies outside of low..high.
    """
    given = array_of(values)
    if not _fits(given.shape, shape) or (
        given.size and not (low <= given.min() and given.max() <= high)
    ):
        raise DataInvalid(
            f"Labels should be whole numbers in {low}..{high} of shape {_shown(shape)}; "
            "check the label column."
        )
    return given.astype(np.int64)


def quantities_of(values: "torch.Tensor | NDArray[Any]", shape: Sequence[int]) -> Floats:
    """Returns labels that are quantities, float64.

    Raises:
        DataInvalid: they have another shape, or one is not finite.
    """
    given = floats(values)
    if not _fits(given.shape, shape) or not np.isfinite(given).all():
        raise DataInvalid(
            f"Labels should be finite numbers of shape {_shown(shape)}; check the label column."
        )
    return given


def checked(vector: NDArray[Any], length: int) -> Floats:
    """Returns a vector of statistics as float64.

    Raises:
        UpdateInvalid: it has another length, or a value is not finite.
    """
    values = np.asarray(vector, dtype=np.float64)
    if values.shape != (length,) or not np.isfinite(values).all():
        raise UpdateInvalid(
            f"Statistics should be {length} finite numbers, not an array of shape {values.shape}; "
            "check that all sites evaluate the same task."
        )
    return values


def require(holds: bool, fault: str) -> None:
    """Refuses parameters that make no sense.

    Raises:
        SettingsError: with that fault.
    """
    if not holds:
        raise SettingsError(fault)


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(
        wanted in (None, given) for given, wanted in zip(shape, expected, strict=True)
    )


def _shown(shape: Sequence[int | None]) -> str:
    return f"[{', '.join('n' if length is None else str(length) for length in shape)}]"
