"""Records in memory, and what is publicly known about a data set."""

import hashlib
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.errors import DataInvalid

Rows = NDArray[np.int64]
LabelKind = Literal["class", "tokens", "number", "survival", "record"]
"""What a label is: one of some classes, the token after each position, a number between -1 and 1,
a time with whether the event came, or, where records are to be reproduced, the record itself."""

_KINDS = {"class": torch.int64, "tokens": torch.int64}


@dataclass(frozen=True)
class Records:
    """Some records of one data set.

    Attributes:
        features: float32, shape [n, *input_shape]; tokens as their numbers.
        labels: by the data set's `LabelKind`: classes, int64, shape [n]; tokens, int64, shape
            [n, T], -1 where a position has none; numbers, float32, shape [n]; survival, float32,
            shape [n, 2], the time and 1 for an event; records, float32, shape [n, 1 + d], 1 for
            an anomaly and then the record.
        units: int64 id of the privacy unit (patient, customer, device) of each record, shape
            [n]; None where every record is a unit of its own.
        origins: int64 index of the natural site of each record, shape [n]; None where the data
            set has none.
        marks: digest of each record as it was published, uint8, shape [n, 16]: by it a record is
            known again however it is prepared; None where there is one way to prepare it.
    """

    features: torch.Tensor
    labels: torch.Tensor
    units: Rows | None = None
    origins: Rows | None = None
    marks: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Rows) -> "Records":
        """Returns the records at ``rows``."""
        index = torch.from_numpy(rows)
        return Records(
            self.features[index],
            self.labels[index],
            None if self.units is None else self.units[rows],
            None if self.origins is None else self.origins[rows],
            None if self.marks is None else self.marks[rows],
        )

    @property
    def unit_count(self) -> int:
        """Number of privacy units; private, never released."""
        return len(self) if self.units is None else len(np.unique(self.units))


@dataclass(frozen=True)
class Dataset:
    """A data set with its public facts.

    Attributes:
        name: name in the catalog.
        train: what is split over the sites.
        test: what the server evaluates on; no site trains on it.
        input_shape: shape of one record's features.
        classes: number of label values, or of tokens; 0 where labels are neither.
        unit: name of the privacy unit; ``row`` where the data names no person.
        sites: names of the natural sites; empty where there are none.
        notes: what a reader of a result on this data must know.
        label_kind: what a label is.
        features: names of a record's values, where it is a row of a table; else empty.
    """

    name: str
    train: Records
    test: Records
    input_shape: tuple[int, ...]
    classes: int
    unit: str = "row"
    sites: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    label_kind: LabelKind = "class"
    features: tuple[str, ...] = ()


def marks_of(published: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.uint8]:
    """Returns the digest of each record as it was published, shape [n, 16]; see `Records`."""
    rows = zip(published, labels.astype(np.uint8), strict=True)
    contents = (row.tobytes() + label.tobytes() for row, label in rows)
    digests = b"".join(hashlib.blake2b(content, digest_size=16).digest() for content in contents)
    return np.frombuffer(digests, np.uint8).reshape(-1, 16)


def check(records: Records, dataset: Dataset) -> Records:
    """Returns ``records`` if they have the declared form.

    Raises:
        DataInvalid: saying which rule is broken, never which record or value.
    """
    if tuple(records.features.shape[1:]) != dataset.input_shape:
        raise DataInvalid(
            f"Records of '{dataset.name}' should have shape {dataset.input_shape}, "
            f"not {tuple(records.features.shape[1:])}; check the data source."
        )
    kinds = (records.features.dtype, records.labels.dtype)
    wanted = (torch.float32, _KINDS.get(dataset.label_kind, torch.float32))
    if kinds != wanted or len(records.features) != len(records.labels):
        raise DataInvalid(
            f"'{dataset.name}' should have {_said(wanted[0])} features and one {_said(wanted[1])} "
            f"label for each record, not {kinds[0]} and {kinds[1]}; check the data source."
        )
    # A mask of large data, or its absolute values, would take as much memory as the data.
    if len(records) and not all(torch.isfinite(bound) for bound in records.features.aminmax()):
        raise DataInvalid(
            f"The data of '{dataset.name}' holds values that are not finite (NaN or infinite); "
            "clean or fill them before training."
        )
    if len(records) and (fault := _label_fault(records.labels, dataset)):
        raise DataInvalid(f"{fault}; check the label column.")
    return records


def _label_fault(labels: torch.Tensor, dataset: Dataset) -> str | None:
    """Returns what is wrong with some labels; None where nothing is."""
    low, high = (float(bound) for bound in labels.aminmax())
    name, kind = f"Labels of '{dataset.name}'", dataset.label_kind
    if kind in ("class", "tokens"):
        least = 0 if kind == "class" else -1
        inside = least <= low <= high < dataset.classes
        return None if inside else f"{name} should lie in {least}..{dataset.classes - 1}"
    if not math.isfinite(low) or not math.isfinite(high):
        return f"{name} should be finite"
    if kind == "number" and not -1 <= low <= high <= 1:
        return f"{name} should lie between -1 and 1, scaled by their public range"
    if kind == "survival" and not (
        labels.shape[1:] == (2,) and low >= 0 and bool(((labels[:, 1] - 0.5).abs() == 0.5).all())
    ):
        return f"{name} should be times from 0, each with 1 for an event or 0"
    if kind == "record" and labels.shape[1:] != (1 + math.prod(dataset.input_shape),):
        return f"{name} should be a mark and the record itself"
    return None


def _said(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
