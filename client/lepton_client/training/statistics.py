"""A site's part in a query for statistics: each person adds one vector of a norm of 1 at most.

The sum is total: what is beyond its public range counts as the end of it, what is not a number as
missing, and a site without records sums to zeros, so that nothing shows but the noised sum.
"""

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.records import Records
from lepton_common.statistics import Cells

_ROWS = 4096  # at a time


def bounded_sum(records: Records, cells: Cells) -> NDArray[np.float64]:
    """Returns the sum over people of their vectors, float64, shape [d].

    Of several records of one person the mean counts: an average of vectors is no longer than the
    longest of them, and so each person moves the sum by a norm of 1 at most, like `Cells` says.
    """
    total = np.zeros(cells.size)
    weights = person_shares(records)
    total[0] = weights.sum()
    for start in range(0, len(records), _ROWS):
        rows = slice(start, start + _ROWS)
        _add_columns(total, _values(records, cells, rows), weights[rows], cells)
        if cells.label_values:
            total[cells.labels] += _label_cells(records, cells, rows, weights[rows])
    return total * cells.scale


def person_shares(records: Records) -> NDArray[np.float64]:
    """Returns for each record 1 over the number of its person's, float64, shape [n]."""
    if records.units is None:
        return np.ones(len(records))
    _, person, counts = np.unique(records.units, return_inverse=True, return_counts=True)
    shares: NDArray[np.float64] = 1.0 / counts[person]
    return shares


def _values(records: Records, cells: Cells, rows: slice) -> NDArray[np.float64]:
    """Returns the columns' values, shape [rows, columns]."""
    features = records.features[rows].flatten(1)[:, list(cells.columns)].double().numpy()
    if cells.label_kind == "number":
        features = np.column_stack([features, records.labels[rows].double().numpy()])
    return features


def _add_columns(
    total: NDArray[np.float64],
    values: NDArray[np.float64],
    weights: NDArray[np.float64],
    cells: Cells,
) -> None:
    missing = np.isnan(values)
    z = np.clip(np.where(missing, 0.0, values), -1.0, 1.0)
    bins = np.minimum((z + 1.0) * (cells.bins / 2), cells.bins - 1).astype(np.int64)
    bins[missing] = cells.bins
    bins += np.arange(cells.width) * (cells.bins + 1)
    of_each = np.repeat(weights, cells.width)
    count = cells.width * (cells.bins + 1)
    total[cells.histograms] += np.bincount(bins.ravel(), of_each, minlength=count)
    first = weights @ np.where(missing, 0.0, z)
    second = weights @ np.where(missing, 0.0, z**2 - 0.5)
    total[cells.moments] += np.concatenate([first, second])


def _label_cells(
    records: Records, cells: Cells, rows: slice, weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Returns how much each label counts; of a text's tokens each for its share of the text."""
    labels = records.labels[rows].numpy()
    if cells.label_kind == "survival":
        labels = labels[:, 1]
    elif cells.label_kind == "record":
        labels = labels[:, 0]
    flat = labels.reshape(len(labels), -1).astype(np.int64)
    of_each = np.repeat(weights / max(1, flat.shape[1]), flat.shape[1])
    inside = (flat.ravel() >= 0) & (flat.ravel() < cells.label_values)
    found = np.bincount(flat.ravel()[inside], of_each[inside], minlength=cells.label_values)
    return found.astype(np.float64)
