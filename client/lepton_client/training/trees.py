"""A site's part in growing one level of trees: sums of derivatives, by open node, feature and bin.

Each record stands in one cell of each feature: that of the node it comes to under the trees that
were received, and of its bin. There its loss's first and second derivative (g, h) are added up, as
they are at the output of the trees that are whole (Chen and Guestrin 2016, the histogram method).

What one person adds with privacy. A record's (g, w h) has a public bound on its length, `norm`, and
stands in F cells, one a feature; divided by norm and the root of F all of it has an L2 norm of 1 at
most. Of several records of one person the mean counts, which is no longer than the longest. So with
one person more or less the sum, times the clipping norm C, moves by C at most: what a plan of the
same C is charged for. Nothing of a record depends on another, whatever was received.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.training.resident import ResidentModel
from lepton_client.training.statistics import person_shares
from lepton_common.arrays import Vector
from lepton_common.datasets.records import Records
from lepton_common.errors import EmptySite, GradientsUnavailable, ModelMismatch
from lepton_common.models.boosted_trees import BoostedTrees
from lepton_common.privacy.noise import SecretRandom
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.tasks.catalog import Task
from lepton_common.tasks.derivatives import Derivatives, derivatives_of

Sums = NDArray[np.float64]


def plain_sums(
    model: ResidentModel, task: Task, records: Records, received: Vector
) -> tuple[Vector, float]:
    """Returns a level's sums, float32, shape [d], and the mean loss of all that has been grown.

    Each person counts as one, so that no cell is above the number of people.

    Raises:
        EmptySite: there is no record.
        GradientsUnavailable: no trees are grown for such a task.
    """
    if len(records) == 0:
        raise EmptySite("This site holds no record; check the data in its site file.")
    trees = _loaded(model, received)
    first, second = _sums(trees, _derivatives(task), records, person_shares(records))
    outputs = trees(records.features)
    loss = float(task.losses(outputs, records.labels).double().mean())
    return np.concatenate([first, second]).astype(np.float32), loss


def bounded_sums(
    model: ResidentModel,
    task: Task,
    records: Records,
    received: Vector,
    plan: PrivacyPlan,
    secret: SecretRandom,
) -> Sums:
    """Returns a level's sums over a sample of people, times a plan's clipping norm, shape [d].

    Each person moves them by an L2 norm of ``plan.clipping_norm`` at most; a site without records
    sums to zeros.

    Raises:
        GradientsUnavailable: no trees are grown for such a task.
    """
    derivatives, trees = _derivatives(task), _loaded(model, received)
    shares = person_shares(records) * _sampled(records, plan.sample_rate, secret)
    first, second = _sums(trees, derivatives, records, shares)
    unit = plan.clipping_norm * person_scale(derivatives, len(trees.importance))
    return np.concatenate([first * unit, second * (unit * derivatives.weight)])


def person_scale(derivatives: Derivatives, features: int) -> float:
    """Returns what g, and w h, are multiplied by so that all a person adds has a norm of 1."""
    return 1.0 / (derivatives.norm * math.sqrt(features))


def within(sums: Vector, most: float) -> Vector:
    """Returns sums made smaller, all alike, where one is above what is publicly known to be most.

    A site whose public size is far too small counts as the largest of that size.
    """
    largest = float(np.abs(sums).max(initial=0.0))
    return sums if largest <= most else sums * np.float32(most / largest)


def _sampled(records: Records, rate: float, secret: SecretRandom) -> NDArray[np.bool_]:
    """Returns which records are of a Poisson sample of people."""
    if records.units is None:
        people, person = len(records), np.arange(len(records))
    else:
        found, person = np.unique(records.units, return_inverse=True)
        people = len(found)
    drawn = np.zeros(people, dtype=bool)
    drawn[secret.poisson_sample(people, rate)] = True
    taken: NDArray[np.bool_] = drawn[person]
    return taken


def _derivatives(task: Task) -> Derivatives:
    found = derivatives_of(task.objective)
    if found is None:
        raise GradientsUnavailable(
            f"No trees are grown for {type(task.objective).__name__}: choose a task of two classes "
            "or a number."
        )
    return found


def _loaded(model: ResidentModel, received: Vector) -> BoostedTrees:
    model.load(received)
    if not isinstance(model.module, BoostedTrees):
        raise ModelMismatch("Levels are grown of boosted trees only.")
    return model.module


def _sums(
    trees: BoostedTrees, derivatives: Derivatives, records: Records, shares: Sums
) -> tuple[Sums, Sums]:
    """Returns the sums of g and of h in all cells, shape [d / 2] each."""
    form, features = trees.form, len(trees.importance)
    tree, level = trees.grown()
    cells = form.open * features * form.bins
    first, second = np.zeros(cells), np.zeros(cells)
    for start in range(0, len(records), trees.rows_at_once):
        rows = slice(start, start + trees.rows_at_once)
        with torch.no_grad():
            binned = trees.binned(records.features[rows])
            node = trees.nodes(binned, slice(tree, tree + 1), level).numpy()
            outputs = trees.margins(binned, tree).numpy()
        g, h = derivatives.of(outputs, records.labels[rows].double().numpy())
        cell = ((node * features + np.arange(features)) * form.bins + binned.numpy()).ravel()
        first += np.bincount(cell, np.repeat(g * shares[rows], features), minlength=cells)
        second += np.bincount(cell, np.repeat(h * shares[rows], features), minlength=cells)
    return first, second
