"""What the server remembers of the sites that it has met: in a table, however many they are."""

import sqlite3
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Self

from lepton_common.chain import ChainRecord

_SCHEMA = "CREATE TABLE sites (name TEXT PRIMARY KEY, key TEXT, ledger TEXT) WITHOUT ROWID"


class KnownSites:
    """Reads along in the server's own log; as a context, it lets go of its table at the end.

    The log is what lasts. The table is SQLite's own temporary file, made anew from the log when a
    run goes on, and in memory only as far as SQLite's cache, two megabytes.

    Attributes:
        config: digest of the configuration that the run began with; None before it has begun.
    """

    def __init__(self) -> None:
        self.config: str | None = None
        self._table = sqlite3.connect("", isolation_level=None)
        self._table.execute(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._table.close()

    def read(self, record: ChainRecord) -> None:
        """Takes over what a record of the log says of the run and its sites."""
        if record.kind == "run" and self.config is None:
            self.config = str(record.body["config"])
        self._note("key", record.body.get("keys", {}))
        self._note("ledger", record.body.get("ledgers", {}))

    def keys(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the keys that sites came with last, of those that came before."""
        return self._known("key", names)

    def ledgers(self, names: Iterable[str]) -> dict[str, str]:
        """Returns the newest entry of the sites' privacy ledgers, of those that have shown one."""
        return self._known("ledger", names)

    def _note(self, what: str, values: Mapping[str, str]) -> None:
        self._table.execute("BEGIN")
        self._table.executemany(
            f"INSERT INTO sites (name, {what}) VALUES (?, ?) "  # noqa: S608
            f"ON CONFLICT (name) DO UPDATE SET {what} = excluded.{what}",
            values.items(),
        )
        self._table.execute("COMMIT")

    def _known(self, what: str, names: Iterable[str]) -> dict[str, str]:
        query = f"SELECT {what} FROM sites WHERE name = ?"  # noqa: S608
        found = ((name, self._table.execute(query, (name,)).fetchone()) for name in names)
        return {name: row[0] for name, row in found if row is not None and row[0] is not None}
