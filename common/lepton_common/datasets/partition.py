"""Splits a data set over simulated sites; names and parameters as in Flower Datasets.

Ours, because a simulated site needs its row numbers only: Flower Datasets brings 300 MB of
packages and four seconds of imports for that. Everything is drawn from ``seed`` alone.
"""

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.records import Dataset, Rows
from lepton_common.errors import EmptySite, SettingsError, TooFewRecords, UnknownName
from lepton_common.names import unknown

PARTITIONERS = ("iid", "dirichlet", "shard", "natural")
_DIRICHLET_TRIES = 10


def partition(
    dataset: Dataset,
    *,
    partitioner: str,
    sites: int,
    seed: int,
    alpha: float,
    shards_per_site: int,
    min_records: int,
) -> list[Rows]:
    """Returns the sorted training rows of each site; together they are all rows, each once.

    Args:
        dataset: what to split.
        partitioner: ``iid`` (even), ``dirichlet`` (label shares drawn from Dirichlet(alpha) per
            site and class), ``shard`` (rows sorted by label, dealt in equal shards) or
            ``natural`` (by the origin the data set names).
        sites: number of sites; for ``natural`` it must be the number of origins.
        seed: of the public randomness used.
        alpha: Dirichlet concentration; small is uneven.
        shards_per_site: for ``shard``.
        min_records: a site with fewer is an error; Dirichlet draws again up to ten times.

    Raises:
        TooFewRecords: more sites than records.
        EmptySite: a site would hold fewer than ``min_records`` records.
        SettingsError: ``natural`` for a data set without natural sites, or a wrong count.
        UnknownName: no such partitioner.
    """
    records = len(dataset.train)
    if sites * max(min_records, 1) > records:
        raise TooFewRecords(
            f"{sites} sites of at least {max(min_records, 1)} records need more than the "
            f"{records} training records of '{dataset.name}'; lower sites or data.min_records."
        )
    rng = np.random.default_rng(seed)
    labels = dataset.train.labels.numpy()
    if partitioner == "iid":
        parts = np.array_split(rng.permutation(records), sites)
    elif partitioner == "dirichlet":
        parts = _dirichlet(labels, sites, rng, alpha, min_records)
    elif partitioner == "shard":
        parts = _shards(labels, sites, rng, shards_per_site)
    elif partitioner == "natural":
        parts = _natural(dataset, sites)
    else:
        raise UnknownName(unknown("partitioner", partitioner, PARTITIONERS))
    for index, part in enumerate(parts):
        if len(part) < max(min_records, 1):
            raise EmptySite(
                f"Site {index + 1} of {sites} would hold {len(part)} records, below the "
                f"{max(min_records, 1)} of data.min_records; use fewer sites or a larger "
                "data.alpha."
            )
    return [np.sort(part).astype(np.int64) for part in parts]


def _dirichlet(
    labels: NDArray[np.int64], sites: int, rng: np.random.Generator, alpha: float, least: int
) -> list[Rows]:
    for _ in range(_DIRICHLET_TRIES):
        parts: list[list[Rows]] = [[] for _ in range(sites)]
        for value in np.unique(labels):
            rows = rng.permutation(np.flatnonzero(labels == value))
            shares = rng.dirichlet(np.full(sites, alpha))
            cuts = (np.cumsum(shares)[:-1] * len(rows)).astype(np.int64)
            for part, piece in zip(parts, np.split(rows, cuts), strict=True):
                part.append(piece)
        joined = [np.concatenate(part) for part in parts]
        if min(len(part) for part in joined) >= max(least, 1):
            break
    return joined


def _shards(
    labels: NDArray[np.int64], sites: int, rng: np.random.Generator, per_site: int
) -> list[Rows]:
    shuffled = rng.permutation(len(labels))
    by_label = shuffled[np.argsort(labels[shuffled], kind="stable")]
    shards = np.array_split(by_label, sites * per_site)
    order = rng.permutation(sites * per_site).reshape(sites, per_site)
    return [np.concatenate([shards[index] for index in hand]) for hand in order]


def _natural(dataset: Dataset, sites: int) -> list[Rows]:
    origins = dataset.train.origins
    if origins is None:
        raise SettingsError(
            f"data.partition=natural: '{dataset.name}' names no natural sites; "
            f"use one of {', '.join(name for name in PARTITIONERS if name != 'natural')}."
        )
    if sites != len(dataset.sites):
        raise SettingsError(
            f"data.partition=natural: '{dataset.name}' has {len(dataset.sites)} natural sites "
            f"({', '.join(dataset.sites)}), so set sites={len(dataset.sites)}, not {sites}."
        )
    return [np.flatnonzero(origins == index) for index in range(sites)]
