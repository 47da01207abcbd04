"""How time and memory grow with the population and with the cohort."""

from collections.abc import Iterator
from pathlib import Path

from lepton_cli.bench import Row
from lepton_cli.bench.simulation.jobs import SMALL, data_of
from lepton_cli.bench.simulation.side import own_side
from lepton_cli.bench.simulation.sides import say, take_turns

_POPULATIONS, _COHORT = (10**3, 10**4, 10**5, 10**6), 50
_COHORTS, _POPULATION = (10, 100, 1000), 10**4


def rows(quick: bool, with_peers: bool) -> Iterator[Row]:
    """Yields seconds a round and the largest memory, each size in a fresh process."""
    del with_peers
    populations, cohorts = (_POPULATIONS[:2], _COHORTS[:2]) if quick else (_POPULATIONS, _COHORTS)
    with data_of(SMALL) as data:
        for population in populations:
            yield from _size(f"scaling_population_{population}", data, population, _COHORT)
        for cohort in cohorts:
            yield from _size(f"scaling_cohort_{cohort}", data, _POPULATION, cohort)


def _size(name: str, data: Path, population: int, cohort: int) -> Iterator[Row]:
    say(f"scaling: {population} sites, cohort {cohort}")
    side = own_side(
        name,
        "federation",
        SMALL,
        data,
        f"sites={population}",
        f"federation.cohort={cohort}",
        "data.partition=drawn",  # each site draws its own, when it is asked for the first time
        f"data.records_per_site={SMALL.records}",
    )
    found = take_turns([side], turns=5, budget_s=10.0)[name]
    if found.missing is not None:
        yield Row(name, None, f"skipped: {found.missing}")
        return
    peak, imports = found.facts["peak_mb"], found.facts["imports_mb"]
    yield Row(name, found.median_s, "s/round")
    yield Row(f"{name}_peak", peak, "MB, largest resident size of the whole process")
    yield Row(f"{name}_peak_beyond_imports", peak - imports, "MB, without what imports take")
