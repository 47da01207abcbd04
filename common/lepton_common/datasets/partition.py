"""Splits a data set over simulated sites; names and parameters as in Flower Datasets.

Ours, because a simulated site needs its row numbers only: Flower Datasets brings 300 MB of
packages and four seconds of imports for that. Everything is drawn from ``seed`` alone.

``iid`` and ``drawn`` make a site's rows when they are asked for, so that a million sites cost
nothing until they work; the others have no more sites than there are records.
"""

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lepton_common.datasets.partitioners import BY_CLASS, PARTITIONERS, Partitioner, Sizes
from lepton_common.datasets.records import Dataset, Rows
from lepton_common.errors import DataInvalid, EmptySite, SettingsError, TooFewRecords, UnknownName
from lepton_common.names import look_up, unknown
from lepton_common.strict import Count, Natural, Positive, record

_TRIES = 10
_FEWER = "use fewer sites"
_MORE = {
    "dirichlet": "use fewer sites or a larger data.alpha",
    "size": "use fewer sites or data.sizes=linear, the evenest",
}


class Parts:
    """The sorted training rows of each site, by its index from 0, made when they are asked for."""

    def __init__(
        self, sites: int, rows_of: Callable[[int], Rows], names: Sequence[str] = ()
    ) -> None:
        """Takes the number of sites, and what makes the rows of one, the same each time.

        Natural sites have ``names``; the others are numbered.
        """
        self._sites, self._rows_of, self._names = sites, rows_of, names

    def __len__(self) -> int:
        """Number of sites."""
        return self._sites

    def __getitem__(self, index: int) -> Rows:
        """Returns the rows of a site, int64, ascending."""
        if not 0 <= index < self._sites:
            raise IndexError(index)
        return np.sort(self._rows_of(index)).astype(np.int64)

    def name(self, index: int) -> str:
        """Returns the name of a site."""
        if self._names:
            return self._names[index]
        return f"site-{index + 1:0{len(str(self._sites))}}"

    def __iter__(self) -> Iterator[Rows]:
        """Yields the rows of all sites, one after another."""
        return map(self.__getitem__, range(self._sites))


@record
class PartSettings:
    """How a data set is split; see `partition`, whose arguments these are."""

    partitioner: Partitioner
    sites: Count
    seed: Natural
    alpha: Positive
    classes_per_site: Count
    shards_per_site: Count
    sizes: Sizes
    records_per_site: Count | None
    min_records: Count

    def split(self, dataset: Dataset) -> Parts:
        """Returns the training rows of each site.

        Raises:
            DataError, SettingsError: see `partition`.
        """
        return partition(dataset, **vars(self))


def partition(
    dataset: Dataset,
    *,
    partitioner: str,
    sites: int,
    seed: int,
    alpha: float,
    classes_per_site: int,
    shards_per_site: int,
    sizes: str,
    records_per_site: int | None,
    min_records: int,
) -> Parts:
    """Returns the training rows of each site; together they are all rows, each once.

    Args:
        dataset: what to split.
        partitioner: ``iid`` (even), ``dirichlet`` (label shares drawn from Dirichlet(alpha) per
            site and class), ``pathological`` (each site has rows of so many classes only),
            ``shard`` (rows sorted by label, dealt in equal shards), ``size`` (even in all but
            number), ``natural`` (by the origin the data set names) or ``drawn``: each site has
            rows drawn for it alone, none twice, so that sites overlap and may be more than there
            are rows.
        sites: number of sites; for ``natural`` it must be the number of origins.
        seed: of the public randomness used.
        alpha: Dirichlet concentration; small is uneven.
        classes_per_site: for ``pathological``: the first goes round with the site's index, the
            others are drawn, and a class is cut evenly among its sites, as in Flower Datasets'
            mode ``first-deterministic`` (Li et al. 2022: Federated learning on non-IID data silos).
        shards_per_site: for ``shard``.
        sizes: for ``size``: the last site has the most rows, in proportion to its number, to the
            number's square or to its exponential.
        records_per_site: for ``drawn``.
        min_records: a site with fewer is an error; Dirichlet draws again up to ten times.

    Raises:
        TooFewRecords: more sites than records, or a site would draw more than there are, or a
            class has fewer records than sites that share it.
        EmptySite: a site would hold fewer than ``min_records`` records.
        SettingsError: ``natural`` for a data set without natural sites, or a wrong count;
            ``drawn`` without ``records_per_site``; one by classes for labels that are none; or
            more classes a site than there are, or so few that one would be at no site.
        UnknownName: no such partitioner.
        DataInvalid: natural sites whose names cannot be told apart as those of sites.
    """
    records = len(dataset.train)
    if partitioner == "drawn":
        return _drawn(dataset, sites, seed, records_per_site)
    if sites * max(min_records, 1) > records:
        raise TooFewRecords(
            f"{sites} sites of at least {max(min_records, 1)} records need more than the "
            f"{records} training records of '{dataset.name}'; lower sites or data.min_records, or "
            "let sites share records with data.partition=drawn."
        )
    if partitioner in BY_CLASS and dataset.label_kind != "class":
        raise SettingsError(
            f"data.partition={partitioner} splits by classes, and labels of '{dataset.name}' are "
            f"none: choose {' or '.join(_fitting(dataset))}."
        )
    rng = np.random.default_rng(seed)
    if partitioner == "iid":
        return _even(rng.permutation(records), sites)
    labels = dataset.train.labels.numpy()
    if partitioner == "dirichlet":
        parts = _dirichlet(labels, sites, rng, alpha, min_records)
    elif partitioner == "pathological":
        parts = _pathological(dataset, sites, rng, classes_per_site)
    elif partitioner == "shard":
        parts = _shards(labels, sites, rng, shards_per_site)
    elif partitioner == "size":
        parts = np.split(rng.permutation(records), np.cumsum(_sizes(records, sites, sizes))[:-1])
    elif partitioner == "natural":
        parts = _natural(dataset, sites)
    else:
        raise UnknownName(unknown("partitioner", partitioner, PARTITIONERS))
    for index, part in enumerate(parts):
        if len(part) < max(min_records, 1):
            raise EmptySite(
                f"Site {index + 1} of {sites} would hold {len(part)} records, below the "
                f"{max(min_records, 1)} of data.min_records; {_MORE.get(partitioner, _FEWER)}."
            )
    return Parts(sites, parts.__getitem__, _names(dataset) if partitioner == "natural" else ())


def _drawn(dataset: Dataset, sites: int, seed: int, per_site: int | None) -> Parts:
    records = len(dataset.train)
    if per_site is None:
        raise SettingsError("data.partition=drawn needs data.records_per_site.")
    if per_site > records:
        raise TooFewRecords(
            f"data.records_per_site={per_site} is more than the {records} training records of "
            f"'{dataset.name}', and no site has a record twice; lower it."
        )

    def rows_of(index: int) -> Rows:
        rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
        return rng.choice(records, per_site, replace=False, shuffle=False)

    return Parts(sites, rows_of)


def _even(shuffled: NDArray[np.int64], sites: int) -> Parts:
    """Cuts as `numpy.array_split` does: the first parts have one row more where it must be."""
    size, longer = divmod(len(shuffled), sites)

    def rows_of(index: int) -> Rows:
        start = index * size + min(index, longer)
        return shuffled[start : start + size + (index < longer)]

    return Parts(sites, rows_of)


def _dirichlet(
    labels: NDArray[np.int64], sites: int, rng: np.random.Generator, alpha: float, least: int
) -> list[Rows]:
    for _ in range(_TRIES):
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


def _pathological(
    dataset: Dataset, sites: int, rng: np.random.Generator, per_site: int
) -> list[Rows]:
    labels = dataset.train.labels.numpy()
    values, counts = np.unique(labels, return_counts=True)
    classes = len(values)
    if per_site > classes:
        raise SettingsError(
            f"data.classes_per_site={per_site} is more than the {classes} classes of "
            f"'{dataset.name}'; lower it."
        )
    for _ in range(_TRIES):
        held = np.zeros((sites, classes), bool)
        for site in range(sites):
            others = np.delete(np.arange(classes), site % classes)
            held[site, rng.choice(others, per_site - 1, replace=False)] = True
            held[site, site % classes] = True
        if held.any(axis=0).all():
            break
    else:
        raise SettingsError(
            f"With {sites} sites of {per_site} classes each, some of the {classes} classes of "
            f"'{dataset.name}' would be at no site; raise sites or data.classes_per_site."
        )
    parts: list[list[Rows]] = [[] for _ in range(sites)]
    for place, value in enumerate(values):
        holders = np.flatnonzero(held[:, place])
        if len(holders) > counts[place]:
            raise TooFewRecords(
                f"{len(holders)} sites would share one class of '{dataset.name}', which has "
                f"{counts[place]} training records; lower sites or data.classes_per_site."
            )
        rows = rng.permutation(np.flatnonzero(labels == value))
        for holder, piece in zip(holders, np.array_split(rows, len(holders)), strict=True):
            parts[holder].append(piece)
    return [np.concatenate(part) for part in parts]


def _sizes(records: int, sites: int, sizes: str) -> NDArray[np.int64]:
    """Returns how many rows each site has, rounded down; what is left over is the last one's."""
    numbers = np.arange(1, sites + 1, dtype=np.float64)
    by_name = {
        "linear": numbers,
        "square": numbers**2,
        # Against the last one's: the exponential of a large number is infinite.
        "exponential": np.exp(numbers - sites),
    }
    units = look_up(by_name, sizes, "data.sizes")
    counts: NDArray[np.int64] = (units / units.sum() * records).astype(np.int64)
    counts[-1] += records - counts.sum()
    return counts


def _fitting(dataset: Dataset) -> list[str]:
    """Returns the partitioners that a data set without classes may be split by."""
    return ["iid", "size", *(["natural"] if dataset.train.origins is not None else []), "drawn"]


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


def _names(dataset: Dataset) -> tuple[str, ...]:
    """Returns what natural sites are called as sites: as in the data, spaces and such as dashes."""
    names = tuple(re.sub(r"[^A-Za-z0-9._]+", "-", name).strip("-._")[:64] for name in dataset.sites)
    if len(set(names) - {""}) != len(names):
        raise DataInvalid(
            f"Natural sites of '{dataset.name}' have names that are the same, or none, without "
            "spaces and signs; choose another data.partition."
        )
    return names
