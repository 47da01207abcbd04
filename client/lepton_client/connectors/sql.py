"""Reads a table or a query's answer from a database, read-only, by SQLAlchemy."""

import os
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from lepton_client.connectors.sources import SqlSource
from lepton_common.errors import ConnectorMissing, SourceUnreachable

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import URL, Engine, Executable

_CONNECT_S = 15
_KEPT = (bool, int, float, str, Decimal, date, time)


def read_sql(source: SqlSource, folder: Path) -> "pl.DataFrame":
    """Returns what a database holds.

    Args:
        source: its URL, table or query, and where its password is.
        folder: the site's.

    Raises:
        SourceUnreachable: it does not answer, lets nobody in, or has no such table or column.
        ConnectorMissing: SQLAlchemy or the database's driver is not installed.
    """
    import polars as pl

    try:
        import sqlalchemy
    except ImportError:
        raise ConnectorMissing("A database needs the extra 'sql': lepton-fl[sql].") from None
    url = _url(source, folder)
    named = url.render_as_string(hide_password=True)
    engine = _engine(url, source)
    try:
        with engine.connect() as connection:
            if url.get_backend_name() == "postgresql":
                connection.execution_options(postgresql_readonly=True)
            answer = connection.execute(_statement(source))
            names, rows = list(answer.keys()), answer.all()
    except sqlalchemy.exc.OperationalError:
        # Not from it: its text holds the statement, and whatever the server saw fit to say.
        raise SourceUnreachable(
            f"The database {named} does not answer, or lets nobody in; see that it runs, that this "
            "host may reach it, and that data.source names the right user and password."
        ) from None
    except sqlalchemy.exc.SQLAlchemyError:
        raise SourceUnreachable(
            f"The database {named} answers, but not to what it is asked; see that data.source "
            "names a table or columns that are there, and that its user may read them."
        ) from None
    finally:
        engine.dispose()
    columns = [[_plain(row[place]) for row in rows] for place in range(len(names))]
    return pl.DataFrame(
        [pl.Series(name, values, strict=False) for name, values in zip(names, columns, strict=True)]
    )


def _engine(url: "URL", source: SqlSource) -> "Engine":
    from sqlalchemy import create_engine
    from sqlalchemy.exc import ArgumentError
    from sqlalchemy.pool import NullPool

    arguments: dict[str, Any] = {}
    if url.get_backend_name() == "postgresql":
        limit = f"-c statement_timeout={source.timeout_s * 1000}"
        arguments = {"connect_timeout": min(source.timeout_s, _CONNECT_S), "options": limit}
    try:
        return create_engine(url, connect_args=arguments, poolclass=NullPool)
    except (ImportError, ArgumentError):
        raise ConnectorMissing(
            f"No driver for {url.drivername} is installed; install it beside Lepton."
        ) from None


def _url(source: SqlSource, folder: Path) -> "URL":
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(source.url)
    except ArgumentError:
        raise SourceUnreachable("data.source.url in site.yaml is no URL of a database.") from None
    if url.get_backend_name() == "sqlite":
        path = folder / (url.database or "")
        if not path.is_file():  # SQLite would make a new one
            raise SourceUnreachable(f"There is no database {path}; correct data.source.url.")
        return url.set(database=f"file:{quote(str(path))}", query={"mode": "ro", "uri": "true"})
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    return url.set(password=_password(source, folder)) if _has_password(source) else url


def _has_password(source: SqlSource) -> bool:
    return source.password_file is not None or source.password_env is not None


def _password(source: SqlSource, folder: Path) -> str:
    if source.password_file is None:
        assert source.password_env is not None, "the caller has asked"
        if (word := os.environ.get(source.password_env)) is None:
            raise SourceUnreachable(
                f"The environment variable {source.password_env}, which should hold the "
                "database's password, is not set; set it for the agent."
            )
        return word
    path = folder / source.password_file
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        raise SourceUnreachable(
            f"Cannot read {path}, which should hold the database's password; make it, for the "
            "trainer's user alone."
        ) from None
    return lines[0] if lines else ""


def _statement(source: SqlSource) -> "Executable":
    from sqlalchemy import literal_column, select, table, text

    if source.query is not None:
        return text(source.query)
    assert source.table is not None, "the site file has one of them"
    schema, _, name = source.table.rpartition(".")
    return select(literal_column("*")).select_from(table(name, schema=schema or None))


def _plain(value: object) -> object:
    return value if value is None or isinstance(value, _KEPT) else str(value)
