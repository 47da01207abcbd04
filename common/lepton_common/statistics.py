"""What a query for statistics asks of a site, and where each figure stands in the sum.

Each person adds one vector: 1 for being there, a cell of the labels, and of each column a cell of
its histogram and two moments. It is put together of blocks whose L2 norm is 1 at most, so that
divided by the root of their number the whole vector's is too, whatever the records hold.
"""

import hashlib
import json
import math
from dataclasses import astuple, dataclass
from functools import cached_property
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from lepton_common.arrays import Vector
from lepton_common.datasets.records import Dataset, LabelKind
from lepton_common.errors import SettingsError
from lepton_common.strict import Digest, Natural, record

MOST_BINS, MOST_CELLS = 1000, 10**7
Bins = Annotated[int, Field(ge=2, le=MOST_BINS)]
# Of z and z² - 1/2 for z in [-1, 1]: the squares add up to z⁴ + 1/4.
MOMENTS_NORM = math.sqrt(1.25)
_LABEL_VALUES: dict[LabelKind, int] = {"survival": 2, "record": 2, "number": 0}


@record
class StatisticsQuery:
    """Asks for statistics in place of training.

    Attributes:
        bins: of each column's histogram, over its public range.
        features: positions of the values of a record that are asked for; None: all.
    """

    bins: Bins
    features: list[Natural] | None


@record
class EvaluationQuery:
    """Asks for the figures of a model on the records that sites hold back, in place of training.

    Attributes:
        bins: of each histogram of scores.
        length: numbers in the sum, which a site holds against its own.
    """

    bins: Bins
    length: Annotated[int, Field(ge=1, le=MOST_CELLS)]


@dataclass(frozen=True)
class Cells:
    """Where each figure stands in the sum: count, labels, histograms, moments.

    Attributes:
        columns: positions of values of a record, flat.
        bins: of a histogram, behind which a cell counts what is missing.
        label_kind: what a label is.
        label_values: cells of labels; 0: none.
    """

    columns: tuple[int, ...]
    bins: int
    label_kind: LabelKind
    label_values: int

    @property
    def width(self) -> int:
        """Number of columns; a label that is a number is the last one."""
        return len(self.columns) + (self.label_kind == "number")

    @property
    def labels(self) -> slice:
        """Cells of the labels; before them stands the count."""
        return slice(1, 1 + self.label_values)

    @property
    def histograms(self) -> slice:
        """Cells of all histograms, column by column."""
        return slice(self.labels.stop, self.labels.stop + self.width * (self.bins + 1))

    @property
    def moments(self) -> slice:
        """Sums of z, column by column, and behind them those of z² - 1/2."""
        return slice(self.histograms.stop, self.histograms.stop + 2 * self.width)

    @property
    def size(self) -> int:
        """d, number of values in the sum."""
        return int(self.moments.stop)

    @property
    def blocks(self) -> int:
        """Number of parts whose norm is 1 at most for each person."""
        return 1 + (self.label_values > 0) + 2 * self.width

    @cached_property
    def scale(self) -> NDArray[np.float64]:
        """What each value of a person is multiplied by, for a norm of 1 at most, shape [d]."""
        scale = np.full(self.size, 1 / math.sqrt(self.blocks))
        scale[self.moments] /= MOMENTS_NORM
        return scale

    @property
    def digest(self) -> Digest:
        """Names the layout, where that of a model stands when one is trained."""
        text = json.dumps(["lepton/statistics/v1", *astuple(self)])
        return hashlib.sha256(text.encode()).hexdigest()

    def probe(self, run: str) -> Vector:
        """Returns what stands where a model would, float32, shape [d].

        It says nothing and is another for each run: sites take no second sum on the same one.
        """
        return probe_of(run, self.size)


def probe_of(run: str, size: int) -> Vector:
    """Returns numbers that say nothing but which run they are of, float32, shape [size]."""
    seed = hashlib.sha256(f"lepton/statistics/{run}".encode()).digest()
    values = np.random.default_rng(int.from_bytes(seed)).uniform(-1, 1, size)
    return values.astype(np.float32)


def cells_of(query: StatisticsQuery, dataset: Dataset) -> Cells:
    """Returns the layout of a query's sum over a data set.

    Tokens have no range, so of texts only the labels are counted, which are their tokens.

    Raises:
        SettingsError: a feature is asked for that there is not, or one twice.
    """
    there = 0 if dataset.label_kind == "tokens" else math.prod(dataset.input_shape)
    asked = list(range(there)) if query.features is None else query.features
    if len(set(asked)) != len(asked) or any(position >= there for position in asked):
        raise SettingsError(
            f"statistics.features: a record of '{dataset.name}' has the features 0 to "
            f"{there - 1}, and each is asked for once."
        )
    values = _LABEL_VALUES.get(dataset.label_kind, dataset.classes)
    return Cells(tuple(asked), query.bins, dataset.label_kind, values)


def column_names(cells: Cells, dataset: Dataset) -> list[str]:
    """Returns a name for each column."""
    shape = dataset.input_shape
    names = [
        dataset.features[position]
        if dataset.features
        else "value " + ",".join(map(str, np.unravel_index(position, shape)))
        for position in cells.columns
    ]
    return [*names, "label"][: cells.width]
