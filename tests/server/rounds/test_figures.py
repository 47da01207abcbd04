"""Figures from sums: exact without noise, and with it off by what their errors say."""

import numpy as np
import pytest
import torch

from lepton_client.training.statistics import bounded_sum
from lepton_common.datasets.records import Dataset, Records
from lepton_common.statistics import StatisticsQuery, cells_of
from lepton_server.rounds.figures import QUANTILES, NoisyCells, cumulative

PEOPLE = 20_000
GENERATOR = np.random.default_rng(5)
VALUES = np.column_stack(
    [np.clip(GENERATOR.normal(0.2, 0.3, PEOPLE), -1, 1), GENERATOR.uniform(-1, 1, PEOPLE)]
)
VALUES[:4000, 1] = np.nan
LABELS = (GENERATOR.uniform(size=PEOPLE) < 0.3).astype(np.int64)
RECORDS = Records(torch.from_numpy(VALUES.astype(np.float32)), torch.from_numpy(LABELS))
CELLS = cells_of(StatisticsQuery(bins=40, features=None), Dataset("toy", RECORDS, RECORDS, (2,), 2))
TOTAL = bounded_sum(RECORDS, CELLS)


def flat(sums):
    """Returns all figures by name."""
    found = {"people": sums.people()}
    for row in sums.labels():
        found |= {f"count {row['label']}": row["count"], f"share {row['label']}": row["share"]}
    for row in sums.columns(["normal", "uniform"]):
        found |= {f"{what} {row['name']}": row[what] for what in ("missing", "mean", "variance")}
        found |= {f"{q} {row['name']}": row["quantiles"][q] for q in row["quantiles"]}
    return found


def truth():
    there = VALUES[4000:, 1]
    found = {
        "people": PEOPLE,
        "count 0": int((LABELS == 0).sum()),
        "count 1": int(LABELS.sum()),
        "share 0": 1 - LABELS.mean(),
        "share 1": LABELS.mean(),
        "missing normal": 0.0,
        "missing uniform": 0.2,
        "mean normal": VALUES[:, 0].mean(),
        "mean uniform": there.mean(),
        "variance normal": VALUES[:, 0].var(),
        "variance uniform": there.var(),
    }
    for share in QUANTILES:
        found[f"{share:g} normal"] = np.quantile(VALUES[:, 0], share)
        found[f"{share:g} uniform"] = np.quantile(there, share)
    return found


def test_without_noise_figures_are_those_of_the_data():
    found, expected = flat(NoisyCells.of(CELLS, TOTAL, 0.0)), truth()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Quantiles are as fine as the bins, of a width of 0.05.
        near = 0.01 if name[0] in "0" else 1e-4 * max(1.0, abs(value))
        assert found[name]["value"] == pytest.approx(value, abs=near), name
        assert found[name]["error"] == 0.0


def test_with_noise_the_mean_of_many_runs_is_near_and_errors_are_what_they_say():
    noise, runs = 40.0, 400
    drawn = {name: [] for name in truth()}
    claimed = {name: [] for name in truth()}
    for _ in range(runs):
        spoiled = TOTAL + GENERATOR.normal(0, noise, len(TOTAL))
        for name, figure in flat(NoisyCells.of(CELLS, spoiled, noise)).items():
            drawn[name].append(figure["value"])
            claimed[name].append(figure["error"])
    for name, value in truth().items():
        spread, error = np.std(drawn[name]), np.median(claimed[name])
        if name == "missing normal":  # cut at 0
            assert np.mean(drawn[name]) < error
            continue
        bias = 0.02 if name[0] == "0" else 1e-3 * max(1.0, abs(value))
        assert np.mean(drawn[name]) == pytest.approx(value, abs=5 * spread / runs**0.5 + bias), name
        # To first order, and of shares as if nothing went together: never far too small.
        assert 0.8 * spread < error < 1.4 * spread, name


def test_what_noise_drowns_is_left_out_rather_than_made_up():
    found = flat(NoisyCells.of(CELLS, np.zeros(CELLS.size), 40.0))
    assert found.pop("people")["value"] == 0.0
    assert found.pop("count 0")["value"] == found.pop("count 1")["value"] == 0.0
    assert not any(found.values())


@pytest.mark.parametrize("seed", range(5))
def test_cumulative_counts_never_fall_and_end_at_the_total(seed):
    counts = np.random.default_rng(seed).normal(5, 20, 12)
    found = cumulative(counts, 60.0)
    assert found.min() >= 0
    assert found[-1] == 60.0
    assert (np.diff(found) >= 0).all()
    honest = np.abs(counts) + 1
    assert cumulative(honest, honest.sum()) == pytest.approx(np.cumsum(honest))
