"""Which records of which site go through at each step, when many sites are trained at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from lepton_client.training.plain import orders
from lepton_common.datasets.records import Rows
from lepton_common.messages import Recipe
from lepton_common.privacy.noise import SecretRandom


class Step(NamedTuple):
    """One step of those sites that take it: the first ones of a group.

    Attributes:
        rows: int64, shape [sites, width]; a row that only fills up is one that is there already.
        counted: bool, shape [sites, width]; False for rows that only fill up.
    """

    rows: Rows
    counted: NDArray[np.bool_]


def steps_of(recipe: Recipe, records: int) -> int:
    """Returns how many steps a site of so many records takes without privacy."""
    if records == 0:
        return 0
    if recipe.local_steps is not None:
        return recipe.local_steps
    return (recipe.local_epochs or 0) * -(-records // recipe.batch_size)


def plain_steps(sites: Sequence[Rows], recipe: Recipe, seeds: Sequence[int]) -> Iterator[Step]:
    """Yields the batches that `train_plain` would take, of all sites at once.

    Args:
        sites: rows of each; those that take more steps first.
        recipe: how long to train.
        seeds: of each site's order.
    """
    steps = [steps_of(recipe, len(rows)) for rows in sites]
    width = min(recipe.batch_size, max((len(rows) for rows in sites), default=0))
    if width == 0:
        return
    order = np.full((len(sites), max(steps), width), -1, np.int64)
    generator = torch.Generator()
    for place, (rows, seed) in enumerate(zip(sites, seeds, strict=True)):
        if len(rows):
            _lay(order[place].reshape(-1), rows, width, orders(len(rows), recipe, seed, generator))
    taken = np.array(steps)
    for step in range(max(steps)):
        yield _filled(order[: int((taken > step).sum()), step])


def _lay(places: Rows, rows: Rows, width: int, passes: Iterator[torch.Tensor]) -> None:
    """Lays passes over rows one behind the other, each in whole batches, until places are full.

    Only the last batch of a pass may be narrower: a site's batches are as wide as any, or it has
    fewer rows than one.
    """
    stride = -(-len(rows) // width) * width
    for start, order in zip(range(0, len(places), stride), passes, strict=False):
        end = min(start + len(rows), len(places))
        places[start:end] = rows[order.numpy()[: end - start]]


def sampled(sites: Sequence[Rows], rates: NDArray[np.float64], secret: SecretRandom) -> Step:
    """Returns a Poisson sample of each site's records, each kept with the site's rate.

    Where a site's is empty, all its rows only fill up.
    """
    sizes = np.array([len(rows) for rows in sites])
    kept = secret.uniform(int(sizes.sum())) < np.repeat(rates, sizes)
    site = np.repeat(np.arange(len(sites)), sizes)[kept]
    counts = np.bincount(site, minlength=len(sites))
    place = np.arange(len(site)) - np.repeat(np.cumsum(counts) - counts, counts)
    order = np.full((len(sites), int(counts.max())), -1, np.int64)
    order[site, place] = np.concatenate(sites)[kept]
    return _filled(order)


def _filled(order: Rows) -> Step:
    """Returns a step from rows of which those below 0 are missing, the others first."""
    counted = order >= 0
    width = int(counted.any(axis=0).sum())
    order, counted = order[:, :width], counted[:, :width]
    # A row of the same batch: it can overflow only where the batch does anyway.
    return Step(np.where(counted, order, order[:, :1].clip(min=0)), counted)
