"""A table checked against its schema and turned into records, by public facts alone."""

import hashlib
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.columns import UNKNOWN, Read, Values, read_column, texts, without_blanks
from lepton_common.datasets.records import Records, Rows
from lepton_common.datasets.schema import Column, Schema
from lepton_common.errors import EmptySite, TableInvalid

if TYPE_CHECKING:
    import polars as pl

_ADVICE = {
    "column": "is not in the table; add it, or say which of the table's columns it is",
    "type": "holds what is no {kind}; correct or leave out these values at the source",
    "missing": "has missing values, which the schema does not allow; fill them or drop the rows",
    "finite": "holds infinite values; correct them at the source",
    "range": "has values outside the public range {low:g} to {high:g}{unit}; correct them",
    "unit": "lies mostly outside the public range {low:g} to {high:g}{unit}; is it in another unit "
    "of measure? Convert it at the source",
    "declared unit": "is said to be in another unit of measure than the schema's{unit}; convert it",
    "category": "holds categories that the schema does not list ({categories}); map them",
    "coding": "holds mostly categories that the schema does not list ({categories}); is it coded "
    "in another way? Map them at the source",
    "unit id": "has rows that name no {protected}, so that nobody's privacy could be counted; give "
    "every row its id",
    "time": "has rows without a time; give every row one",
    "one class": "has records of one class only, from which nothing can be learnt; widen the "
    "source, or allow it in the site file",
}  # fmt: skip


def prepare_table(frame: "pl.DataFrame", schema: Schema) -> Records:
    """Checks a table and returns its records.

    Numbers are scaled by their public range to [-1, 1] and clipped; categories become one-hot by
    the schema's list; what is missing is dealt with by the schema's rule; ids of privacy units are
    hashed to int64. Nothing is computed from the rows that would tell of others than their own.

    Args:
        frame: any columns beyond the schema's are not looked at; texts may stand for numbers.
        schema: what it must hold.

    Returns:
        Features float32, shape [n, d], or [n, steps, d] where the schema cuts windows.

    Raises:
        TableInvalid: every fault at once, by column and rule, never a value or a row.
        EmptySite: no row is left.
    """
    reads, counts = _read(frame, schema)
    if counts:
        raise TableInvalid(_sentences(schema, counts), counts)
    kept = np.ones(frame.height, dtype=bool)
    for column in schema.columns:
        if column.missing == "drop":
            kept &= ~np.isnan(reads[column.name].values)
    rows = np.flatnonzero(kept).astype(np.int64)
    units = unit_numbers(frame, schema)
    if schema.duplicates == "drop":
        rows = _first_of_each(rows, reads, units)
    if len(rows) == 0:
        raise EmptySite(
            f"The table for '{schema.name}' holds no row to train on; check its source."
        )
    features = np.concatenate([_features(reads[c.name], c) for c in schema.feature_columns], axis=1)
    labels = _labels(reads, schema)
    origins = reads[schema.site].values if schema.site else None
    ends = last = rows
    if schema.windows is None:
        shaped = features[rows]
    else:
        starts = _starts(frame, schema, rows)
        steps, ahead = schema.windows.steps, schema.windows.ahead
        shaped = features[starts[:, :steps]]
        ends, last = starts[:, steps - 1], starts[:, steps - 1 + ahead]
    if schema.label_kind == "record":
        flat = shaped.reshape(len(shaped), -1)
        labels = np.concatenate([labels[last][:, None], flat], axis=1)
    else:
        labels = labels[last]
    return Records(
        torch.from_numpy(shaped),
        torch.from_numpy(labels),
        units=None if units is None else units[ends],
        origins=None if origins is None else origins[ends].astype(np.int64),
    )


def unit_numbers(frame: "pl.DataFrame", schema: Schema) -> Rows | None:
    """Returns the privacy unit's id of each row as a number, int64, shape [n].

    An id keeps its number in every version of the table, and however the table keeps it, as 12 or
    as "12"; the numbers stay at the site.
    """
    if not schema.unit_id:
        return None
    ids = texts(without_blanks(frame[schema.unit_id])).fill_null("").to_list()
    known = {one: unit_number(one) for one in set(ids)}
    return np.array([known[one] for one in ids], dtype=np.int64)


def unit_number(text: str) -> int:
    """Returns the number of a privacy unit's id, the same in whatever the id is written."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"lepton unit id").digest()
    return int.from_bytes(digest, signed=True)


def _read(
    frame: "pl.DataFrame", schema: Schema
) -> tuple[dict[str, Read], dict[tuple[str, str], int]]:
    reads: dict[str, Read] = {}
    counts: dict[tuple[str, str], int] = {}
    for column in schema.columns:
        if column.name not in frame.columns:
            counts[column.name, "column"] = frame.height
            continue
        label = column.name in (schema.label, schema.event, schema.site)
        strict = label and not (column.name == schema.label and schema.label_kind == "number")
        read = reads[column.name] = read_column(frame[column.name], column, strict=strict)
        counts |= {(column.name, rule): count for rule, count in read.faults.items()}
    for name, rule in _keys(schema):
        if name not in frame.columns:
            counts[name, "column"] = frame.height
        elif count := without_blanks(frame[name]).null_count():
            counts[name, rule] = count
    return reads, counts


def _keys(schema: Schema) -> list[tuple[str, str]]:
    keys = [(schema.unit_id, "unit id")]
    if schema.windows is not None:
        keys += [(schema.windows.series, "unit id"), (schema.windows.time, "time")]
    return [(name, rule) for name, rule in dict(keys).items() if name]


def _sentences(schema: Schema, counts: dict[tuple[str, str], int]) -> list[str]:
    known = {column.name: column for column in schema.columns}
    return [_sentence(schema, known.get(name), name, rule) for name, rule in counts]


def _sentence(schema: Schema, column: Column | None, name: str, rule: str) -> str:
    low, high = column.range if column else (0.0, 0.0)
    unit = f" {column.unit}" if column and column.unit else ""
    categories = ", ".join(column.categories) if column else ""
    kind = {"number": "number", "integer": "whole number", "flag": "yes or no"}
    advice = _ADVICE[rule].format(
        kind=kind.get(column.kind, "category") if column else "",
        low=low, high=high, unit=unit, categories=categories, protected=schema.unit,
    )  # fmt: skip
    return f"The column '{name}' {advice}."


def table_fault(schema: Schema, faults: dict[tuple[str, str], int]) -> TableInvalid:
    """Returns the error for faults by column and rule; for rules that a site adds of its own."""
    return TableInvalid(_sentences(schema, faults), faults)


def _features(read: Read, column: Column) -> NDArray[np.float32]:
    absent = np.isnan(read.values)
    if column.kind == "category":
        numbers = np.where(absent, UNKNOWN, read.values).astype(np.int64)
        made: NDArray[np.float32] = (numbers[:, None] == np.arange(len(column.categories))).astype(
            np.float32
        )
        if column.encoding == "dummies":
            made = np.float32(2) * made[:, 1:] - np.float32(1)
    else:
        low, high = column.range
        scaled = np.clip(2.0 * (read.values - low) / (high - low) - 1.0, -1.0, 1.0)
        scaled[absent] = -1.0 if column.missing == "low" else 0.0
        if column.encoding == "zero_one":
            scaled = (scaled + 1.0) / 2.0
        made = scaled.astype(np.float32)[:, None]
    if column.missing == "indicator":
        made = np.concatenate([made, absent.astype(np.float32)[:, None]], axis=1)
    return made


def _labels(reads: dict[str, Read], schema: Schema) -> NDArray[np.int64] | NDArray[np.float32]:
    """Returns the label of each row; rows that were dropped have any."""
    column, values = schema.column(schema.label), reads[schema.label].values
    if schema.label_kind == "class":
        low = column.range[0] if column.kind == "integer" else 0.0
        return np.nan_to_num(values - low).astype(np.int64)
    if schema.label_kind == "number":
        low, high = column.range
        scaled: Values = np.clip(2.0 * (values - low) / (high - low) - 1.0, -1.0, 1.0)
        return scaled.astype(np.float32)
    if schema.label_kind == "survival":
        return np.stack([values, reads[schema.event].values], axis=1).astype(np.float32)
    return values.astype(np.float32)


def _first_of_each(rows: Rows, reads: dict[str, Read], units: Rows | None) -> Rows:
    """Returns the rows without those that are equal to an earlier one, unit and all."""
    parts = [read.values[rows].view(np.int64) for read in reads.values()]
    parts += [units[rows]] if units is not None else []
    _, first = np.unique(np.stack(parts, axis=1), axis=0, return_index=True)
    return rows[np.sort(first)]


def _starts(frame: "pl.DataFrame", schema: Schema, rows: Rows) -> Rows:
    """Returns the rows of each window, in order of time, and as many as stand ahead of it."""
    import polars as pl

    assert schema.windows is not None
    windows = schema.windows
    time = without_blanks(frame[windows.time])
    numbers = time.cast(pl.Float64, strict=False) if time.dtype == pl.String else time
    time = time if numbers.null_count() else numbers
    series = texts(without_blanks(frame[windows.series])) if windows.series else None
    ids = pl.Series([""] * frame.height) if series is None else series
    ordered = (
        pl.DataFrame({"id": ids, "time": time, "row": np.arange(frame.height)})
        .filter(pl.Series(np.isin(np.arange(frame.height), rows)))
        .sort("id", "time", maintain_order=True)
    )
    length = windows.steps + windows.ahead
    cut = [np.empty((0, length), np.int64)]
    for group in ordered.partition_by("id", maintain_order=True):
        of_one = group["row"].to_numpy()
        if len(of_one) >= length:
            views = np.lib.stride_tricks.sliding_window_view(of_one, length)
            cut.append(views[:: windows.stride])
    found: Rows = np.concatenate(cut).astype(np.int64)
    if len(found) == 0:
        raise EmptySite(f"No series of the table for '{schema.name}' is as long as one record.")
    return found
