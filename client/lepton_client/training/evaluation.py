"""A site's part in an evaluation: each person adds one vector of a norm of 1 at most.

People go through the model one by one. Matrix products of other heights round in other ways, by
which one person's records could move another's over the edge of a bin.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.training.resident import ResidentModel
from lepton_common.datasets.records import Records, Rows
from lepton_common.tasks.figures import judged
from lepton_common.tasks.sums import FigureCells

_BATCH = 256  # of one person's records


def figure_sum(model: ResidentModel, records: Records, cells: FigureCells) -> NDArray[np.float64]:
    """Returns the sum over people of their vectors, float64, shape [d].

    Args:
        model: with the weights that are evaluated.
        records: those that are held back.
        cells: layout of the sum.
    """
    model.module.eval()
    total = np.zeros(cells.size)
    for rows in _people(records):
        own = np.zeros(cells.size)
        for part in np.split(rows, range(_BATCH, len(rows), _BATCH)):
            index = torch.from_numpy(part)
            with torch.no_grad():
                outputs = model.module(records.features[index].to(model.device, model.dtype))
            said, wanted = judged(cells.task, outputs.cpu().float(), records.labels[index])
            own += cells.statistics.of(said, wanted)
        own *= cells.scale / len(rows)
        # What is proven of each kind of statistics holds here whatever comes of it.
        total += own / max(1.0, float(np.linalg.norm(own)))
    return total


def _people(records: Records) -> list[Rows]:
    """Returns the rows of each person."""
    if records.units is None:
        return [np.array([row]) for row in range(len(records))]
    order = np.argsort(records.units, kind="stable")
    ends = np.flatnonzero(np.diff(records.units[order])) + 1
    return [rows for rows in np.split(order, ends) if len(rows)]
