"""Which records are a site's, and how they are read."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated
from weakref import ReferenceType, ref

import numpy as np
from pydantic import Field

from lepton_client.connectors.file_records import declared, read_files
from lepton_client.connectors.file_sources import FILES, FileSource, paths_of
from lepton_client.connectors.reading import facts, read_records
from lepton_client.connectors.sources import (
    TableSource,
    files_of,
    name_faults,
    source_faults,
    variables_of,
)
from lepton_client.people import held_back
from lepton_common.datasets.catalog import DATASETS, load_dataset
from lepton_common.datasets.records import Dataset, Records, Rows
from lepton_common.datasets.schemas import SCHEMAS, find_schema
from lepton_common.errors import DataMissing
from lepton_common.names import unknown
from lepton_common.strict import Name, Share, record


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
        source: the site's own table or files, which are read in the place of the catalog's
            records; None: these.
        held_back: share of the people whose records are never trained on, but evaluated.
    """

    id: Name
    dataset: Name
    root: str | None
    prepare: str
    unit: Name
    rows: str | None
    source: Annotated[TableSource | FileSource, Field(discriminator="kind")] | None = None
    held_back: Share = 0.0

    def faults(self, *, cut_off: bool) -> list[str]:
        """Returns what contradicts itself, one sentence each.

        Args:
            cut_off: whether who reads the data has no network.
        """
        if self.source is None:
            return []
        if isinstance(self.source, FILES):
            named = self.dataset in DATASETS
            faults = (
                [] if named else [f"data.dataset: {unknown('data set', self.dataset, DATASETS)}"]
            )
        else:
            faults = source_faults(self.source, cut_off=cut_off)
            if self.dataset not in SCHEMAS:
                faults.append(f"data.dataset: {unknown('schema', self.dataset, SCHEMAS)}")
            else:
                faults += name_faults(self.source, SCHEMAS[self.dataset])
        if self.prepare != "public_ranges":
            faults.append("data.prepare is public_ranges where the site has a source of its own.")
        if self.rows is not None:
            faults.append("data.rows is null where the site has a source of its own.")
        return faults

    def kept(self, folder: Path) -> list[str]:
        """Returns what of a site's folder its data is read from, as relative paths."""
        named = [folder / self.rows] if self.rows else []
        named += [Path(self.root)] if self.root else []
        if isinstance(self.source, FILES):
            named += paths_of(self.source, folder)
        elif self.source is not None:
            named += files_of(self.source, folder)
        paths = [path.resolve() for path in named]
        return [str(path.relative_to(folder)) for path in paths if path.is_relative_to(folder)]

    @property
    def variables(self) -> list[str]:
        """Names of the environment variables that who reads the data needs."""
        if self.source is None or isinstance(self.source, FILES):
            return []
        return variables_of(self.source)


# Bytes of features that a process keeps taken out of data sets: as many as the data set has, so
# that it is there twice at most, but within these bounds.
_LEAST_HELD, _MOST_HELD = 32 * 2**20, 2**30


class _Held:
    """The records that were taken out of data sets last, by the file that lists their rows.

    Those read last are always there, however large: they are all that the process of a real site
    has.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: OrderedDict[Path, tuple[ReferenceType[Records], Rows, Records]]
        self._held = OrderedDict()
        self._bytes = 0

    def take(self, path: Path, train: Records, rows: Rows) -> Records:
        """Returns the records at ``rows``, from before if they were taken so."""
        with self._lock:
            if path in self._held:
                of, which, held = self._held[path]
                if of() is train and np.array_equal(which, rows):
                    self._held.move_to_end(path)
                    return held
        taken = train.take(rows)
        most = min(max(train.features.nbytes, _LEAST_HELD), _MOST_HELD)
        with self._lock:
            self._drop(path)
            self._held[path] = ref(train), rows, taken
            self._bytes += taken.features.nbytes
            while self._bytes > most and len(self._held) > 1:
                self._drop(next(iter(self._held)))
        return taken

    def _drop(self, path: Path) -> None:
        if path in self._held:
            self._bytes -= self._held.pop(path)[2].features.nbytes


_HELD = _Held()


class SiteRecords:
    """Reads a site's records; those read last stay while the list of rows is the same.

    Whoever trains takes `trained_on` of them, whoever evaluates `evaluated_on`.
    """

    def __init__(self, data: SiteData, folder: Path) -> None:
        self._data, self._folder = data, folder

    def dataset(self) -> Dataset:
        """Returns the data set that the site's records belong to, checked.

        Raises:
            DataError: it cannot be read.
        """
        if isinstance(self._data.source, FILES):
            return declared(self._data.dataset)
        if self._data.source is not None:
            return facts(find_schema(self._data.dataset))
        return load_dataset(self._data.dataset, self._data.root, self._data.prepare)

    def trained_on(self, records: Records) -> Records:
        """Returns those of the site's records that may be trained on."""
        return self._part(records, held=False)

    def evaluated_on(self, records: Records) -> Records:
        """Returns the others, which are held back."""
        return self._part(records, held=True)

    def _part(self, records: Records, *, held: bool) -> Records:
        if self._data.held_back == 0 and not held:
            return records
        mask = held_back(records, self._data.unit, self._data.held_back)
        return records.take(np.flatnonzero(mask == held))

    def read(self) -> Records:
        """Returns all of the site's own records, held back or not.

        Raises:
            DataError: the data set cannot be read, or the list of rows does not fit it; or the
                site's own table cannot be read, or does not fit its schema.
        """
        if isinstance(self._data.source, FILES):
            return read_files(self._data.source, self.dataset(), self._folder)
        if self._data.source is not None:
            return read_records(self._data.source, find_schema(self._data.dataset), self._folder)
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
        return _HELD.take(path, train, rows)
