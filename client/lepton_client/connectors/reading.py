"""A site's own table as records: read, named as the schema names it, checked, prepared."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lepton_client.connectors.frames import read_frame
from lepton_client.connectors.sources import TableSource
from lepton_common.datasets.records import Dataset, Records, check
from lepton_common.datasets.schema import Schema
from lepton_common.datasets.tables import prepare_table, table_fault

if TYPE_CHECKING:
    import polars as pl


def read_records(source: TableSource, schema: Schema, folder: Path) -> Records:
    """Returns the records of a site's own table.

    Args:
        source: where it is.
        schema: of the data set that the site file names.
        folder: the site's.

    Raises:
        SourceUnreachable, ConnectorMissing: it cannot be read.
        TableInvalid: it does not fit the schema; all faults at once.
        EmptySite: it holds no row.
        DataInvalid: the file is damaged.
    """
    declared = {column.name: column.unit for column in schema.columns}
    apart = [name for name, unit in source.units.items() if unit.split() != declared[name].split()]
    frame = _renamed(read_frame(source, folder), source)
    if apart:
        raise table_fault(schema, {(name, "declared unit"): frame.height for name in apart})
    records = prepare_table(frame, schema)
    one = schema.label_kind == "class" and bool((records.labels == records.labels[0]).all())
    if one and not source.allow_one_class:
        raise table_fault(schema, {(schema.label, "one class"): len(records)})
    return check(records, facts(schema))


def facts(schema: Schema) -> Dataset:
    """Returns what is public of a data set by its schema alone; no record is in it."""
    labels = {"class": (0,), "number": (0,), "survival": (0, 2)}
    width = torch.Size(schema.input_shape).numel()
    nothing = Records(
        torch.empty(0, *schema.input_shape),
        torch.empty(
            labels.get(schema.label_kind, (0, 1 + width)),
            dtype=torch.int64 if schema.label_kind == "class" else torch.float32,
        ),
    )
    return Dataset(
        name=schema.name,
        train=nothing,
        test=nothing,
        input_shape=schema.input_shape,
        classes=schema.classes,
        unit=schema.unit,
        label_kind=schema.label_kind,
        features=schema.features if schema.windows is None else (),
    )


def _renamed(frame: "pl.DataFrame", source: TableSource) -> "pl.DataFrame":
    named = {own: name for name, own in source.columns.items() if own in frame.columns}
    kept = [name for name in frame.columns if name in named or name not in named.values()]
    return frame.select(kept).rename(named)
