"""What a site file may say about where the site's table is."""

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import Field

from lepton_common.datasets.schema import Schema
from lepton_common.errors import SettingsError
from lepton_common.names import unknown
from lepton_common.strict import Count, parse, record
from lepton_common.yaml_text import load_yaml, yaml_fault


@record
class _Table:
    """What all tables have.

    Attributes:
        columns: the schema's name of a column -> the table's own, where they differ.
        units: the schema's name of a column -> the unit of measure that the table has it in, as far
            as the operator says so; another than the schema's is refused.
        allow_one_class: whether records that are all of one class are trained on.
    """

    columns: dict[str, str] = Field(default_factory=dict)
    units: dict[str, str] = Field(default_factory=dict)
    allow_one_class: bool = False


@record
class CsvSource(_Table):
    """A text file of separated values.

    Attributes:
        path: absolute, or in the site's folder.
        separator: one character.
        names: names of the columns, where the file's first line has none.
    """

    kind: Literal["csv"]
    path: str
    separator: Annotated[str, Field(min_length=1, max_length=1)] = ","
    names: list[str] | None = None


@record
class ParquetSource(_Table):
    """A Parquet file.

    Attributes:
        path: absolute, or in the site's folder.
    """

    kind: Literal["parquet"]
    path: str


@record
class SqlSource(_Table):
    """A table of a database, or what a query gives.

    Attributes:
        url: as SQLAlchemy writes it, without the password: ``postgresql://reader@host/clinic``, or
            ``sqlite:///file.db`` in the site's folder.
        table: its name, with its schema's before a dot where it has one; or a query.
        query: one that reads.
        password_file: file whose first line is the password; absolute, or in the site's folder.
        password_env: environment variable that holds it.
        timeout_s: longest time that connecting or reading may take.
    """

    kind: Literal["sql"]
    url: str
    table: str | None = None
    query: str | None = None
    password_file: str | None = None
    password_env: str | None = None
    timeout_s: Count = 300

    @property
    def needs_network(self) -> bool:
        """Whether the database is reached over a network, and not by a file or a Unix socket."""
        parts = urlsplit(self.url)
        if parts.scheme.startswith("sqlite"):
            return False
        return bool(parts.hostname) or "host=/" not in parts.query.replace("%2F", "/")


TableSource = Annotated[CsvSource | ParquetSource | SqlSource, Field(discriminator="kind")]


@record
class _SourceFile:
    source: TableSource


def read_source(path: Path) -> TableSource:
    """Reads a YAML file that holds what stands under ``data.source`` in a site file.

    Raises:
        SettingsError: it cannot be read, or all its faults at once.
    """
    try:
        values = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"Cannot read the source file {path} ({type(error).__name__})."
        ) from None
    except yaml.YAMLError as error:
        raise SettingsError(f"The source file {path} is no YAML: {yaml_fault(error)}.") from None
    file, faults = parse(_SourceFile, {"source": values})
    if file is None:
        raise SettingsError([f"{path}: {fault}" for fault in faults])
    return file.source


def source_faults(source: TableSource, *, cut_off: bool) -> list[str]:
    """Returns every fault of a source that its form allows, one sentence each, without its values.

    Args:
        source: as a site file says.
        cut_off: whether who reads it has no network.
    """
    if not isinstance(source, SqlSource):
        return []
    faults = []
    try:
        parts = urlsplit(source.url)
        secret = parts.password is not None or "password=" in parts.query
        network = source.needs_network
    except ValueError:
        return ["data.source.url is no URL, such as postgresql://reader@host/clinic."]
    if not parts.scheme:
        faults.append("data.source.url is no URL, such as postgresql://reader@host/clinic.")
    if secret:
        faults.append(
            "data.source.url holds a password, which anybody who sees site.yaml would read; put it "
            "into a file or an environment variable, and name that: password_file or password_env."
        )
    if (source.table is None) == (source.query is None):
        faults.append("data.source needs a table or a query, and not both.")
    if source.password_file is not None and source.password_env is not None:
        faults.append("data.source needs password_file or password_env, and not both.")
    if cut_off and network:
        faults.append(
            "data.source.url leads over a network, which a trainer has none of with isolation: "
            "namespace; use the database's Unix socket (?host=/run/postgresql), or set "
            "trainer.isolation to 'process'."
        )
    return faults


def name_faults(source: TableSource, schema: Schema) -> list[str]:
    """Returns a sentence for each column that a source names and a schema does not have."""
    windows = schema.windows
    keys = {schema.unit_id, *((windows.series, windows.time) if windows else ())} - {""}
    columns = {column.name for column in schema.columns}
    named = [("columns", name, columns | keys) for name in source.columns]
    named += [("units", name, columns) for name in source.units]
    return [
        f"data.source.{section}: {unknown(f'column of {schema.name}', name, known)}"
        for section, name, known in named
        if name not in known
    ]


def variables_of(source: TableSource) -> list[str]:
    """Returns the names of the environment variables that reading a source takes."""
    variable = source.password_env if isinstance(source, SqlSource) else None
    return [variable] if variable is not None else []


def files_of(source: TableSource, folder: Path) -> list[Path]:
    """Returns the files that reading a source takes, whether or not they are there."""
    if not isinstance(source, SqlSource):
        return [folder / source.path]
    files = [folder / source.password_file] if source.password_file else []
    if source.url.startswith("sqlite"):
        files.append(folder / urlsplit(source.url).path.removeprefix("/"))
    return files
