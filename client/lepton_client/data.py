"""Which records are a site's, and how they are read."""

from pathlib import Path

import numpy as np

from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.records import Dataset, Records, Rows
from lepton_common.errors import DataMissing
from lepton_common.strict import Name, record


@record
class SiteData:
    """Which records are the site's.

    Attributes:
        id: the operator's own name for the data, under which the ledger keeps it.
        dataset: a name in the catalog of data sets.
        root: folder that holds it; None for the user's cache.
        prepare: how it is prepared.
        unit: what the data protects as one.
        rows: file in the site's folder that lists the site's rows (``.npy``, int64); None: all.
    """

    id: Name
    dataset: Name
    root: str | None
    prepare: str
    unit: Name
    rows: str | None


class SiteRecords:
    """Reads a site's records, and keeps them while its list of rows stays the same."""

    def __init__(self, data: SiteData, folder: Path) -> None:
        self._data, self._folder = data, folder
        self._held: tuple[Records, Rows, Records] | None = None

    def dataset(self) -> Dataset:
        """Returns the data set that the site's records belong to, checked.

        Raises:
            DataError: it cannot be read.
        """
        return load_dataset(self._data.dataset, self._data.root, self._data.prepare)

    def read(self) -> Records:
        """Returns the site's own records.

        Raises:
            DataError: the data set cannot be read, or the list of rows does not fit it.
        """
        train = self.dataset().train
        if self._data.rows is None:
            return train
        path = self._folder / self._data.rows
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataMissing(f"Cannot read the list of rows {path}; create it again.") from error
        fits = rows.dtype == np.int64 and rows.ndim == 1 and len(np.unique(rows)) == len(rows)
        if not fits or (len(rows) and not 0 <= rows.min() <= rows.max() < len(train)):
            raise DataMissing(f"The list of rows {path} does not fit its data set.")
        if self._held is not None:
            of, which, held = self._held
            if of is train and np.array_equal(which, rows):
                return held
        self._held = train, rows, train.take(rows)
        return self._held[2]
