"""A site's part in an evaluation: each person adds one vector of a norm of 1 at most.

People go through the model one by one. Matrix products of other heights round in other ways, by
which one person's records could move another's over the edge of a bin.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.training.conformance import check_forgets
from lepton_client.training.resident import ResidentModel
from lepton_common.arrays import Vector
from lepton_common.datasets.records import Dataset, Records, Rows
from lepton_common.errors import ModelMismatch
from lepton_common.messages import TrainRequest
from lepton_common.models.tokens import spread
from lepton_common.statistics import EvaluationQuery
from lepton_common.tasks.catalog import Task, find_task
from lepton_common.tasks.figures import judged
from lepton_common.tasks.sums import FigureCells, figure_cells, weights_of

_BATCH = 256  # of one person's records


def figure_sum(
    request: TrainRequest,
    received: Vector,
    model: ResidentModel,
    records: Records,
    dataset: Dataset,
) -> tuple[NDArray[np.float64], FigureCells]:
    """Returns the sum over people of their vectors, float64, shape [d], and its layout.

    Args:
        request: what is asked.
        received: the model, and behind it the numbers that name the query.
        model: of the request's kind.
        records: those that are held back.
        dataset: what they belong to.

    Raises:
        ModelMismatch: no model is asked about, or the server lays out model or sum otherwise.
        BuffersNotAllowed: with privacy, of a model that remembers records.
    """
    query, task = request.statistics, find_task(request.task)
    if not isinstance(query, EvaluationQuery):
        raise ModelMismatch("Without privacy, nothing but training and an evaluation is done.")
    layout, shape = model.layout, dataset.input_shape
    cells = figure_cells(query.bins, task, dataset.classes, shape, layout.digest)
    private = request.privacy is not None
    weights = weights_of(received, private=private)
    if (cells.digest, cells.size, layout.size) != (request.layout, query.length, len(weights)):
        raise ModelMismatch("The server lays out the sum in another way than this site.")
    batch_size = min(_BATCH, request.recipe.batch_size)  # which with privacy the policy bounds
    if private:
        check_forgets(model, shape)
    model.load(weights)
    if private:
        # A batch of the largest size comes first: where there is no room for it, that must not
        # tell whether anybody has so many records.
        _sum_over_people(model, _made_up_person(model, task, dataset, batch_size), cells)
    return _sum_over_people(model, records, cells, batch_size), cells


def _made_up_person(model: ResidentModel, task: Task, dataset: Dataset, records: int) -> Records:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(records, *dataset.input_shape, generator=generator)
    labels = task.objective.made_up_labels(records, dataset.classes, dataset.input_shape, generator)
    return Records(spread(model.module, features), labels, units=np.zeros(records, np.int64))


def _sum_over_people(
    model: ResidentModel, records: Records, cells: FigureCells, batch_size: int = _BATCH
) -> NDArray[np.float64]:
    model.module.eval()
    total = np.zeros(cells.size)
    for rows in _people(records):
        own = np.zeros(cells.size)
        for part in np.split(rows, range(batch_size, len(rows), batch_size)):
            index = torch.from_numpy(part)
            with torch.no_grad():
                outputs = model.module(records.features[index].to(model.device, model.dtype))
            said, wanted = judged(cells.task, outputs.cpu().float(), records.labels[index])
            own += cells.statistics.of(said, wanted)
        own *= cells.scale / len(rows)
        # What is proven of each kind of statistics holds here whatever comes of it.
        norm = float(np.linalg.norm(own))
        if math.isfinite(norm):  # else nothing of the sum were left, which tells of one person
            total += own / max(1.0, norm)
    return total


def _people(records: Records) -> list[Rows]:
    """Returns the rows of each person."""
    if records.units is None:
        return [np.array([row]) for row in range(len(records))]
    order = np.argsort(records.units, kind="stable")
    ends = np.flatnonzero(np.diff(records.units[order])) + 1
    return [rows for rows in np.split(order, ends) if len(rows)]
