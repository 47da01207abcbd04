"""Reads the table that a site file names into a frame, as it stands there."""

from pathlib import Path
from typing import TYPE_CHECKING

from lepton_client.connectors.sources import CsvSource, ParquetSource, TableSource
from lepton_client.connectors.sql import read_sql
from lepton_common.errors import DataInvalid, SourceUnreachable

if TYPE_CHECKING:
    import polars as pl


def read_frame(source: TableSource, folder: Path) -> "pl.DataFrame":
    """Returns the table.

    Args:
        source: where it is.
        folder: the site's.

    Raises:
        SourceUnreachable: a file or database is not there, or does not let itself be read.
        DataInvalid: a file is not of its kind.
        ConnectorMissing: the package that reads it is not installed.
    """
    import polars as pl

    if isinstance(source, CsvSource | ParquetSource):
        path = folder / source.path
        try:
            data = path.read_bytes()
        except OSError as error:
            raise SourceUnreachable(
                f"Cannot read {path} ({error.strerror}); correct data.source.path in site.yaml, or "
                "let the trainer's user read it."
            ) from None
        try:
            if isinstance(source, ParquetSource):
                return pl.read_parquet(data)
            # As texts: what a column should hold is the schema's to say, not the first rows'.
            return pl.read_csv(
                data,
                separator=source.separator,
                has_header=source.names is None,
                new_columns=source.names,
                infer_schema=False,
            )
        except pl.exceptions.NoDataError:
            return pl.DataFrame()
        except (pl.exceptions.PolarsError, ValueError):
            # Its text may quote what stands in the file.
            raise DataInvalid(
                f"{path} is no {source.kind} file; see data.source.kind in site.yaml, and whether "
                "every line has as many values as the first."
            ) from None
    return read_sql(source, folder)
