"""Made-up tables of a schema's form, whose labels follow a known rule: for tests, never for more.

Values are drawn evenly from the public ranges and categories, so that nothing of the published
data shows in them; what a model can reach at best follows from the rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_common.datasets.records import Dataset, Records
from lepton_common.datasets.schema import Column, Schema
from lepton_common.datasets.tables import prepare_table
from lepton_common.datasets.tabular import table_dataset

_TRAIN, _TEST = 800, 400
_MISSING = 0.05  # share of a column's values, where the schema lets them be missing
_SEEN_FOR = 0.2  # of the range of times: nobody is lost from sight before


@dataclass(frozen=True)
class Rule:
    """How labels follow from features: a weighted sum of some, and chance.

    Of two classes, the second has the chance sigmoid(sum); a number is the sum, in units of half
    its range from the middle, and a normal deviate; an event comes at the rate exp(sum).

    Attributes:
        weights: by the feature's name, as its schema says.
        deviation: standard deviation of what chance adds to a number.
        rate: events to come in the whole range of times, where the sum is 0.
    """

    weights: Mapping[str, float]
    deviation: float = 0.0
    rate: float = 1.0

    def sums(self, features: torch.Tensor, names: tuple[str, ...]) -> NDArray[np.float64]:
        """Returns the sum of each record, shape [n]: what a model that knew the rule would say."""
        weights = np.array([self.weights.get(name, 0.0) for name in names])
        values: NDArray[np.float64] = features.double().numpy() @ weights
        return values


def made_up(schema: Schema, rule: Rule) -> Dataset:
    """Returns made-up records of a schema's form, the same each time.

    Args:
        schema: of a table of one row a record; with two classes, where it has classes.
        rule: by which labels follow.
    """
    import polars as pl

    rng = np.random.default_rng(0)
    count = _TRAIN + _TEST
    columns = {column.name: _values(column, schema, count, rng) for column in schema.columns}
    if schema.unit_id:
        columns[schema.unit_id] = [f"made-up-{number}" for number in range(count)]
    records = prepare_table(pl.DataFrame(columns), schema)
    sums = rule.sums(records.features, schema.features)
    records = replace(records, labels=torch.from_numpy(_labels(sums, schema, rule, rng)))
    note = f"Made-up records: what is reached on them says nothing about {schema.name}."
    train, test = (_between(records, *ends) for ends in ((0, _TRAIN), (_TRAIN, count)))
    return table_dataset(schema, train, test, (note,))


def _between(records: Records, start: int, stop: int) -> Records:
    return records.take(np.arange(start, stop, dtype=np.int64))


def _values(
    column: Column, schema: Schema, count: int, rng: np.random.Generator
) -> list[str | None]:
    low, high = column.range
    if column.kind == "category":
        drawn = [column.categories[one] for one in rng.integers(len(column.categories), size=count)]
    elif column.kind == "number":
        drawn = [f"{value:.6g}" for value in rng.uniform(low, high, count)]
    else:
        drawn = [str(value) for value in rng.integers(int(low), int(high) + 1, count)]
    absent = rng.random(count) < (0.0 if column.missing in ("refuse", "drop") else _MISSING)
    return [None if gone else value for gone, value in zip(absent, drawn, strict=True)]


def _labels(
    sums: NDArray[np.float64], schema: Schema, rule: Rule, rng: np.random.Generator
) -> NDArray[np.int64] | NDArray[np.float32]:
    if schema.label_kind == "class":
        return (rng.random(len(sums)) < 1 / (1 + np.exp(-sums))).astype(np.int64)
    if schema.label_kind == "number":
        noisy = sums + rng.normal(0, rule.deviation, len(sums))
        return np.clip(noisy, -1, 1).astype(np.float32)
    longest = schema.column(schema.label).range[1]
    comes = longest * rng.exponential(1 / (rule.rate * np.exp(sums)))
    seen = longest * rng.uniform(_SEEN_FOR, 1, len(sums))
    return np.stack([np.minimum(comes, seen), comes <= seen], axis=1).astype(np.float32)
