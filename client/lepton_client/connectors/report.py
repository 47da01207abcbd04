"""What was wrong with a site's table, in full, for its operator: the file stays at the site."""

import contextlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from lepton_common.durable import write_atomic
from lepton_common.errors import ConnectorMissing, DataError, TableInvalid
from lepton_common.printable import printable
from lepton_common.strict import Natural, record, to_json

REPORT_FILE = "data-report.json"
_MOST_FAULTS = 4096
_Text = Annotated[str, Field(max_length=4096)]


@record
class Broken:
    """A rule that a column breaks.

    Attributes:
        column: its name in the schema.
        rule: what it breaks.
        rows: how many rows do.
    """

    column: _Text
    rule: _Text
    rows: Natural


@record
class Report:
    """What was wrong with a site's data.

    Attributes:
        error: name of the error, all that may leave the site.
        said: one sentence for each fault.
        broken: rules, where it is a table that does not fit its schema.
        found: when, UTC.
    """

    error: _Text
    said: Annotated[list[_Text], Field(max_length=_MOST_FAULTS)]
    broken: Annotated[list[Broken], Field(max_length=_MOST_FAULTS)]
    found: _Text

    @staticmethod
    def of(error: BaseException) -> "Report | None":
        """Returns the report of an error; None where it says nothing of data."""
        if not isinstance(error, DataError | ConnectorMissing):
            return None
        table = error if isinstance(error, TableInvalid) else None
        counts = list(table.counts.items())[:_MOST_FAULTS] if table else []
        return Report(
            error=type(error).__name__,
            said=[text[:4096] for text in table.faults[:_MOST_FAULTS]]
            if table
            else [str(error)[:4096]],
            broken=[Broken(column=c, rule=rule, rows=rows) for (c, rule), rows in counts],
            found=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    def error_of(self, kind: type[Exception]) -> Exception:
        """Returns the error again, in another process; of its text, what can be printed."""
        said = [printable(text) for text in self.said]
        if issubclass(kind, TableInvalid):
            return kind(said, {(one.column, one.rule): one.rows for one in self.broken})
        return kind(" ".join(said))


def keep_report(folder: Path, error: BaseException) -> None:
    """Writes what is wrong with a site's data into its folder; nothing for any other error.

    Args:
        folder: the site's.
        error: what came of reading the data.
    """
    report = Report.of(error)
    if report is not None:
        with contextlib.suppress(OSError):  # errors.log tells of it too
            write_atomic(folder / REPORT_FILE, to_json(report).encode() + b"\n", mode=0o600)
