"""Records in memory, and what is publicly known about a data set."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.errors import DataInvalid

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Some records of one data set.

    Attributes:
        features: float32, shape [n, *input_shape].
        labels: int64, shape [n].
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
        classes: number of label values.
        unit: name of the privacy unit; ``row`` where the data names no person.
        sites: names of the natural sites; empty where there are none.
        notes: what a reader of a result on this data must know.
    """

    name: str
    train: Records
    test: Records
    input_shape: tuple[int, ...]
    classes: int
    unit: str = "row"
    sites: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


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
    if kinds != (torch.float32, torch.int64) or len(records.features) != len(records.labels):
        raise DataInvalid(
            f"'{dataset.name}' should have float32 features and one int64 label for each record, "
            f"not {kinds[0]} and {kinds[1]}; check the data source."
        )
    # A mask of large data, or its absolute values, would take as much memory as the data.
    if len(records) and not all(torch.isfinite(bound) for bound in records.features.aminmax()):
        raise DataInvalid(
            f"The data of '{dataset.name}' holds values that are not finite (NaN or infinite); "
            "clean or fill them before training."
        )
    if len(records) and not 0 <= int(records.labels.min()) <= int(records.labels.max()) < (
        dataset.classes
    ):
        raise DataInvalid(
            f"Labels of '{dataset.name}' should lie in 0..{dataset.classes - 1}; "
            "check the label column."
        )
    return records
