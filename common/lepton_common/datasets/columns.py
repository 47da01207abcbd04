"""One column of a table read as its schema says, and what is wrong with it."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.schema import BLANKS, Column

if TYPE_CHECKING:
    import polars as pl

Values = NDArray[np.float64]
UNKNOWN = -1.0
"""Stands in the place of a category's number where the schema lists no such category."""

_MOST_OUTSIDE = 0.5
_YES, _NO = ("1", "true", "yes", "y", "t"), ("0", "false", "no", "n", "f")


@dataclass
class Read:
    """A column's values.

    Attributes:
        values: float64, shape [n]; NaN where one is missing; categories by their number, flags as
            0 or 1.
        faults: rows at fault, by rule.
    """

    values: Values
    faults: dict[str, int] = field(default_factory=dict)

    def note(self, rule: str, wrong: NDArray[np.bool_]) -> None:
        """Notes a fault in some rows, if there are any."""
        if count := int(wrong.sum()):
            self.faults[rule] = count


def read_column(series: "pl.Series", column: Column, *, strict: bool = False) -> Read:
    """Reads a column.

    Args:
        series: as it came, of any type; texts are trimmed, and some stand for a missing value.
        column: what it should hold.
        strict: whether a value outside the range or an unknown category is a fault anyway.
    """
    bare = without_blanks(series)
    read = _read(bare, column, strict=strict)
    read.note("type", bare.is_not_null().to_numpy() & np.isnan(read.values))
    if column.missing == "refuse":
        read.note("missing", bare.is_null().to_numpy())
    return read


def _read(bare: "pl.Series", column: Column, *, strict: bool) -> Read:
    if column.kind == "category":
        read = _categories(bare, column)
        outside, rule = read.values == UNKNOWN, "category"
    elif column.kind == "flag":
        return _flags(bare)
    else:
        read = _numbers(bare)
        if column.kind == "integer":
            read.values[np.isfinite(read.values) & (read.values != np.rint(read.values))] = np.nan
        low, high = column.range
        outside = np.isfinite(read.values) & ((read.values < low) | (read.values > high))
        rule = "range"
    present = int((~np.isnan(read.values)).sum())
    if strict or column.outside == "refuse":
        read.note(rule, outside)
    elif present and outside.sum() > _MOST_OUTSIDE * present:
        read.note("coding" if rule == "category" else "unit", outside)
    return read


def without_blanks(series: "pl.Series") -> "pl.Series":
    """Returns texts trimmed, and null where they stand for a missing value; else what came."""
    import polars as pl

    if isinstance(series.dtype, pl.Categorical | pl.Enum):
        series = series.cast(pl.String)
    if series.dtype != pl.String:
        return series.fill_nan(None) if series.dtype.is_float() else series
    bare = series.str.strip_chars()
    return bare.zip_with(~bare.is_in(list(BLANKS)), pl.Series([None], dtype=pl.String))


def texts(series: "pl.Series") -> "pl.Series":
    """Returns one text for each value, the same however a table keeps it; 1.0 is 1."""
    import polars as pl

    if series.dtype == pl.Boolean:
        return series.cast(pl.Int64).cast(pl.String)
    if series.dtype.is_numeric() and not series.dtype.is_integer():
        numbers = series.cast(pl.Float64)
        whole = numbers.cast(pl.Int64, strict=False)
        same = (numbers == whole.cast(pl.Float64)).fill_null(value=False)
        return whole.cast(pl.String).zip_with(same, numbers.cast(pl.String))
    return series.cast(pl.String)


def _numbers(series: "pl.Series") -> Read:
    import polars as pl

    numeric = series.dtype.is_numeric() or series.dtype in (pl.String, pl.Null)
    numbers = series.cast(pl.Float64, strict=False) if numeric else series.is_null().replace_strict(
        {True: None, False: None}, return_dtype=pl.Float64
    )  # fmt: skip
    read = Read(numbers.to_numpy().astype(np.float64))
    read.note("finite", np.isinf(read.values))
    return read


def _flags(series: "pl.Series") -> Read:
    import polars as pl

    known = texts(series).str.to_lowercase().str.strip_suffix(".0")
    table = dict.fromkeys(_YES, 1.0) | dict.fromkeys(_NO, 0.0)
    flags = known.replace_strict(table, default=None, return_dtype=pl.Float64)
    return Read(flags.to_numpy().astype(np.float64))


def _categories(series: "pl.Series", column: Column) -> Read:
    import polars as pl

    listed = _same(pl.Series(list(column.categories)))
    table = {text: float(number) for number, text in enumerate(listed)}
    came = _same(texts(series))
    found = came.replace_strict(table, default=UNKNOWN, return_dtype=pl.Float64)
    found = found.zip_with(series.is_not_null(), pl.Series([None], dtype=pl.Float64))
    return Read(found.to_numpy().astype(np.float64))


def _same(known: "pl.Series") -> "pl.Series":
    """Returns texts, those of whole numbers written in one way: 3.0 and 03 are 3."""
    import polars as pl

    numbers = known.cast(pl.Float64, strict=False)
    whole = numbers.cast(pl.Int64, strict=False)
    same = (numbers == whole.cast(pl.Float64)).fill_null(value=False)
    return whole.cast(pl.String).zip_with(same, known)
