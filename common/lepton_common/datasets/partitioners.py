"""The ways to split a data set over simulated sites, by Flower Datasets' names."""

from typing import Literal, get_args

Partitioner = Literal["iid", "dirichlet", "pathological", "shard", "size", "natural", "drawn"]
Sizes = Literal["linear", "square", "exponential"]

PARTITIONERS: tuple[Partitioner, ...] = get_args(Partitioner)
BY_CLASS: frozenset[Partitioner] = frozenset({"dirichlet", "pathological", "shard"})
"""Those that split by the classes of labels."""
