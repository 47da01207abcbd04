"""What a table must hold, declared in public: columns, units, ranges, categories, label, people."""

import math
from dataclasses import dataclass
from typing import Literal

from lepton_common.datasets.records import LabelKind
from lepton_common.errors import SettingsError

Kind = Literal["number", "integer", "category", "flag"]
Missing = Literal["refuse", "drop", "low", "middle", "indicator"]
Outside = Literal["clip", "refuse"]
Duplicates = Literal["keep", "drop"]
Encoding = Literal["one_hot", "dummies", "zero_one"]

BLANKS = ("", "?", "NA", "N/A", "NaN", "nan", "null", "None")
"""Texts that stand for a missing value."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: its name in the table.
        kind: a number, a whole number, one of some categories, or yes or no.
        low: least value of a number, by public knowledge and never by looking at the data.
        high: greatest value; both are scaled to -1 and 1.
        unit: unit of measure, as ``mm Hg``; "" where there is none.
        categories: all of them, in order.
        missing: what a missing value means: the table is refused, the row is dropped, the value is
            the range's low end or its middle (of a flag: no, or neither), or the middle and a
            further feature that says so (of a category: none of them, and that feature).
        outside: what a value outside the range, or an unknown category, means: clipped to the
            range, or none of the categories; or the table is refused. A class is never guessed so.
        encoding: of categories ``one_hot``, 0 or 1 for each, or ``dummies``, -1 or 1, without the
            first; of a flag ``zero_one``, 0 or 1 in place of -1 or 1, which suits many rare ones.
    """

    name: str
    kind: Kind
    low: float | None = None
    high: float | None = None
    unit: str = ""
    categories: tuple[str, ...] = ()
    missing: Missing = "refuse"
    outside: Outside = "clip"
    encoding: Encoding = "one_hot"

    def __post_init__(self) -> None:
        ranged = self.kind in ("number", "integer")
        bounds = (self.low, self.high)
        if ranged and not (
            all(bound is not None and math.isfinite(bound) for bound in bounds)
            and (self.low or 0.0) < (self.high or 0.0)
        ):
            raise SettingsError(f"The column '{self.name}' needs a public range: low below high.")
        if not ranged and bounds != (None, None):
            raise SettingsError(f"The column '{self.name}' is no number; it has no range.")
        if (self.kind == "category") != (len(self.categories) >= 2):
            raise SettingsError(
                f"The column '{self.name}' needs two categories or more, if it is of kind category."
            )
        if len(set(self.categories)) != len(self.categories):
            raise SettingsError(f"The column '{self.name}' names a category twice.")
        kinds = {"dummies": "category", "zero_one": "flag"}
        if kinds.get(self.encoding, self.kind) != self.kind:
            raise SettingsError(f"The column '{self.name}' is not of a kind to be {self.encoding}.")
        if self.kind == "category" and self.missing in ("low", "middle"):
            raise SettingsError(f"The column '{self.name}' has no {self.missing} category.")

    @property
    def range(self) -> tuple[float, float]:
        """The public range; of a flag, 0 and 1."""
        return (0.0, 1.0) if self.low is None or self.high is None else (self.low, self.high)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of the features that it gives."""
        skipped = 1 if self.encoding == "dummies" else 0
        names = tuple(f"{self.name}={one}" for one in self.categories[skipped:]) or (self.name,)
        return (*names, f"{self.name} missing") if self.missing == "indicator" else names


@dataclass(frozen=True)
class Windows:
    """How a long table, one row a moment, becomes records of equal length.

    Attributes:
        series: column of the series' id, as an engine's number; "" where there is one series.
        time: column by which a series is ordered.
        steps: rows of a record.
        stride: rows from one record's begin to the next's.
        ahead: how many rows after the record's last the label stands.
    """

    series: str
    time: str
    steps: int
    stride: int = 1
    ahead: int = 0

    def __post_init__(self) -> None:
        if not self.time or self.steps < 1 or self.stride < 1 or self.ahead < 0:
            raise SettingsError("Windows need a column of time, and steps and a stride from 1.")


@dataclass(frozen=True)
class Schema:
    """What a table must hold to be a data set's.

    Attributes:
        name: of the data set.
        columns: in the order of the features; the label's is among them, or stands for all else.
        label: name of the label's column; for survival, of the time's.
        label_kind: what a label is; see `LabelKind`. ``tokens`` are no table's.
        event: for survival, name of the flag that says whether the event came.
        unit_id: name of the column with the privacy unit's id, as a patient's number; "" where
            each row is a unit of its own.
        unit: what that unit is.
        site: name of the category column that names natural sites; "" where there are none.
        duplicates: whether rows that are equal in all these columns are kept.
        windows: how a time series is cut; None for a table of one row a record.
    """

    name: str
    columns: tuple[Column, ...]
    label: str
    label_kind: LabelKind = "class"
    event: str = ""
    unit_id: str = ""
    unit: str = "row"
    site: str = ""
    duplicates: Duplicates = "keep"
    windows: Windows | None = None

    def __post_init__(self) -> None:
        named = [column.name for column in self.columns]
        if len(set(named)) != len(named):
            raise SettingsError(f"The schema '{self.name}' names a column twice.")
        if self.label_kind == "tokens":
            raise SettingsError(f"The schema '{self.name}' is a table's; it has no tokens.")
        for role in (self.label, self.event, self.site):
            if role and role not in named:
                raise SettingsError(f"The schema '{self.name}' declares no column '{role}'.")
        if not self.label or (self.label_kind == "survival") != bool(self.event):
            raise SettingsError(f"The schema '{self.name}' needs a label; survival, an event too.")
        kinds = {
            "class": ("category", "flag", "integer"),
            "number": ("number", "integer"),
            "survival": ("number", "integer"),
            "record": ("flag",),
        }
        if self.column(self.label).kind not in kinds[self.label_kind]:
            raise SettingsError(f"The label of the schema '{self.name}' is of the wrong kind.")
        if self.event and self.column(self.event).kind != "flag":
            raise SettingsError(f"The event of the schema '{self.name}' should be a flag.")
        if self.site and self.column(self.site).kind != "category":
            raise SettingsError(f"The sites of the schema '{self.name}' should be categories.")
        if not self.feature_columns:
            raise SettingsError(f"The schema '{self.name}' leaves nothing to learn from.")

    def column(self, name: str) -> Column:
        """Returns the column of that name."""
        return next(column for column in self.columns if column.name == name)

    @property
    def feature_columns(self) -> tuple[Column, ...]:
        """The columns that a model sees, in order."""
        apart = {self.event, self.site}
        if not (self.windows and self.label_kind == "number"):
            apart.add(self.label)  # a forecast sees what came before of what it forecasts
        return tuple(column for column in self.columns if column.name not in apart)

    @property
    def features(self) -> tuple[str, ...]:
        """Names of a record's features, or of a moment's."""
        return tuple(name for column in self.feature_columns for name in column.features)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one record's features."""
        width = len(self.features)
        return (width,) if self.windows is None else (self.windows.steps, width)

    @property
    def classes(self) -> int:
        """Number of label values; 0 where labels are no classes."""
        if self.label_kind != "class":
            return 0
        label = self.column(self.label)
        low, high = label.range
        return len(label.categories) or int(high - low) + 1
