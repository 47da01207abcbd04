"""Published tables as data sets: read as texts, prepared by their schema, split once for all."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.schema import Schema

if TYPE_CHECKING:
    import polars as pl

_TEST_SHARE = 0.2


def read_texts(
    path: Path, *, separator: str = ",", names: tuple[str, ...] = (), skipped: int = 0
) -> "pl.DataFrame":
    """Returns a file's table, every value as the text that stands there.

    Args:
        path: a published file, whose sum was checked.
        separator: what stands between values.
        names: of the columns, for a file without a line of them.
        skipped: lines before the table.
    """
    import polars as pl

    table = pl.read_csv(
        path,
        separator=separator,
        has_header=not names,
        new_columns=list(names) or None,
        skip_rows=skipped,
        infer_schema=False,
    )
    return table.filter(~pl.all_horizontal(pl.all().is_null()))  # blank lines, as at the end


def table_dataset(
    schema: Schema, train: Records, test: Records, notes: tuple[str, ...] = ()
) -> Dataset:
    """Returns a data set with the public facts that its schema says."""
    return Dataset(
        name=schema.name,
        train=train,
        test=test,
        input_shape=schema.input_shape,
        classes=schema.classes,
        unit=schema.unit,
        sites=schema.column(schema.site).categories if schema.site else (),
        notes=notes,
        label_kind=schema.label_kind,
        features=schema.features,
    )


def split_once(records: Records) -> tuple[Records, Records]:
    """Returns four fifths for training and one for tests, the same each time.

    Each natural site, and of classes each class there, gives its share to both.

    Args:
        records: of which each is a privacy unit of its own.
    """
    from sklearn.model_selection import train_test_split

    strata = np.zeros(len(records), np.int64) if records.origins is None else records.origins
    if not records.labels.dtype.is_floating_point:
        classes = records.labels.numpy()
        strata = strata * (classes.max() + 1) + classes
    train, test = train_test_split(
        np.arange(len(records)), test_size=_TEST_SHARE, random_state=0, stratify=strata
    )
    return records.take(np.sort(train)), records.take(np.sort(test))
