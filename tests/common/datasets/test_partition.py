"""Tests of partitioners: each row once, from the seed alone, as uneven as asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lepton_common.datasets.partition import PARTITIONERS, partition
from lepton_common.datasets.records import Dataset, Records
from lepton_common.errors import EmptySite, SettingsError, TooFewRecords, UnknownName

_ORIGINS = 4
_SPLITTERS = [name for name in PARTITIONERS if name != "drawn"]


def _dataset(records=400, classes=10, *, origins=True):
    rng = np.random.default_rng(0)
    part = Records(
        torch.zeros(records, 1),
        torch.from_numpy(rng.integers(0, classes, records)),
        origins=rng.integers(0, _ORIGINS, records) if origins else None,
    )
    sites = tuple("abcd") if origins else ()
    return Dataset("example", part, part, input_shape=(1,), classes=classes, sites=sites)


_DATA = _dataset()


def _split(dataset=_DATA, **changes):
    options = {
        "partitioner": "iid", "sites": 4, "seed": 1, "alpha": 0.5, "shards_per_site": 2,
        "records_per_site": None, "min_records": 1,
    }  # fmt: skip
    return partition(dataset, **{**options, **changes})


def _shares(parts):
    labels = _DATA.train.labels.numpy()
    counts = np.array([np.bincount(labels[rows], minlength=10) for rows in parts])
    return counts / counts.sum(axis=1, keepdims=True)


@given(
    st.sampled_from(_SPLITTERS),
    st.integers(1, 8),
    st.integers(0, 2**32),
    st.sampled_from([0.3, 1.0, 100.0]),
    st.integers(1, 4),
)
def test_every_row_is_at_exactly_one_site(partitioner, sites, seed, alpha, shards):
    sites = _ORIGINS if partitioner == "natural" else sites
    options = {"alpha": alpha, "shards_per_site": shards}
    try:
        parts = _split(partitioner=partitioner, sites=sites, seed=seed, **options)
    except EmptySite:
        assert partitioner == "dirichlet"
        return
    assert len(parts) == sites
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))
    for rows in parts:
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


@pytest.mark.parametrize("partitioner", PARTITIONERS)
def test_the_split_depends_on_the_seed_alone(partitioner):
    def flat(seed):
        per_site = 30 if partitioner == "drawn" else None
        parts = _split(partitioner=partitioner, seed=seed, records_per_site=per_site)
        return [rows.tolist() for rows in parts]

    first = flat(3)
    np.random.seed(5)  # noqa: NPY002
    torch.manual_seed(5)
    assert flat(3) == first
    assert (flat(4) == first) == (partitioner == "natural")


def test_iid_sites_are_even():
    sizes = [len(rows) for rows in _split(sites=7)]
    assert max(sizes) - min(sizes) <= 1


def test_a_small_alpha_is_uneven_and_a_large_one_even():
    even = _shares(_split(partitioner="dirichlet", alpha=1e4))
    uneven = _shares(_split(partitioner="dirichlet", alpha=0.05))
    assert even.max() < 0.25
    assert even.min() > 0.03
    assert uneven.max(axis=1).mean() > 0.35
    assert (uneven == 0).mean() > 0.3


def test_shards_give_each_site_few_labels():
    parts = _split(partitioner="shard", sites=10, shards_per_site=2)
    labels = _DATA.train.labels.numpy()
    seen = [len(set(labels[rows].tolist())) for rows in parts]
    # Two shards of 20 records out of about 40 a label: each touches at most two labels.
    assert max(seen) <= 4
    assert {len(rows) for rows in parts} == {40}


def test_natural_sites_are_those_of_the_data():
    for index, rows in enumerate(_split(partitioner="natural")):
        assert (_DATA.train.origins[rows] == index).all()


def test_natural_needs_the_right_number_of_sites():
    with pytest.raises(SettingsError, match=r"4 natural sites \(a, b, c, d\), so set sites=4"):
        _split(partitioner="natural", sites=5)


def test_natural_needs_origins():
    with pytest.raises(SettingsError, match="names no natural sites; use one of iid, dirichlet"):
        _split(_dataset(origins=False), partitioner="natural")


def test_an_unknown_partitioner_is_refused_by_name():
    with pytest.raises(UnknownName, match="did you mean 'dirichlet'"):
        _split(partitioner="dirichlett")


@pytest.mark.parametrize("partitioner", _SPLITTERS)
def test_more_sites_than_records_are_too_few_records(partitioner):
    with pytest.raises(TooFewRecords, match="5 sites"):
        _split(_dataset(records=4), partitioner=partitioner, sites=5)
    with pytest.raises(TooFewRecords, match="of at least 101 records"):
        _split(partitioner=partitioner, sites=4, min_records=101)


def test_as_many_sites_as_records_are_enough():
    assert [len(rows) for rows in _split(_dataset(records=4), sites=4)] == [1] * 4


@pytest.mark.parametrize("partitioner", ["dirichlet", "natural"])
def test_a_site_below_the_minimum_is_an_error(partitioner):
    with pytest.raises(EmptySite, match=r"of data.min_records"):
        _split(partitioner=partitioner, alpha=0.05, min_records=100)


def test_dirichlet_draws_again_to_meet_the_minimum():
    for seed in range(20):
        parts = _split(partitioner="dirichlet", alpha=1.0, min_records=50, seed=seed)
        assert min(len(rows) for rows in parts) >= 50


def _draw(sites, per_site=30, **changes):
    return _split(partitioner="drawn", sites=sites, records_per_site=per_site, **changes)


def test_drawn_sites_have_as_many_rows_as_asked_none_twice_whatever_their_number():
    parts = _draw(10**9)
    assert len(parts) == 10**9
    for index in (0, 1, 999_999_999):
        rows = parts[index]
        assert rows.dtype == np.int64
        assert len(rows) == 30
        assert (np.diff(rows) > 0).all()
        assert 0 <= rows[0] <= rows[-1] < 400
    with pytest.raises(IndexError):
        parts[10**9]


def test_a_drawn_site_depends_on_seed_and_index_alone():
    assert (_draw(5)[3] == _draw(10**6)[3]).all()
    assert (_draw(5, seed=2)[3] != _draw(5)[3]).any()
    assert len({tuple(rows) for rows in _draw(200)}) == 200


def test_over_many_drawn_sites_every_row_is_as_likely():
    counts = np.bincount(np.concatenate(list(_draw(4000))), minlength=400)
    assert counts.sum() == 4000 * 30
    assert stats.chisquare(counts).pvalue > 1e-4


def test_only_the_rows_of_a_site_that_is_asked_are_drawn(monkeypatch):
    made = []
    choice = np.random.Generator.choice

    class Counting(np.random.Generator):
        def choice(self, *args, **options):
            made.append(args)
            return choice(self, *args, **options)

    monkeypatch.setattr(np.random, "default_rng", lambda seed: Counting(np.random.PCG64(seed)))
    parts = _draw(10**6)
    assert made == []
    assert len(parts[17]) == 30
    assert len(made) == 1


def test_drawing_needs_a_number_of_records_that_there_are():
    with pytest.raises(SettingsError, match=r"needs data\.records_per_site"):
        _draw(3, per_site=None)
    with pytest.raises(TooFewRecords, match="records_per_site=401 is more than the 400"):
        _draw(3, per_site=401)
    assert len(_draw(3, per_site=400)[2]) == 400


def test_even_parts_are_those_of_array_split():
    for sites in (1, 3, 7, 399, 400):
        expected = np.array_split(np.random.default_rng(1).permutation(400), sites)
        for rows, part in zip(_split(sites=sites), expected, strict=True):
            assert rows.tolist() == sorted(part.tolist())
