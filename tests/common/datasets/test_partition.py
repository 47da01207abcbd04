"""Tests of partitioners: each row once, from the seed alone, as uneven as asked for."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lepton_common.datasets.partition import partition
from lepton_common.datasets.partitioners import BY_CLASS, PARTITIONERS
from lepton_common.datasets.records import Dataset, Records
from lepton_common.errors import DataInvalid, EmptySite, SettingsError, TooFewRecords, UnknownName

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
        "partitioner": "iid", "sites": 4, "seed": 1, "alpha": 0.5, "classes_per_site": 4,
        "shards_per_site": 2, "sizes": "linear", "records_per_site": None, "min_records": 1,
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
    st.integers(1, 10),
    st.sampled_from(["linear", "square", "exponential"]),
)
def test_every_row_is_at_exactly_one_site(partitioner, sites, seed, alpha, shards, classes, sizes):
    sites = _ORIGINS if partitioner == "natural" else sites
    options = {"alpha": alpha, "shards_per_site": shards, "classes_per_site": classes}
    try:
        parts = _split(partitioner=partitioner, sites=sites, seed=seed, sizes=sizes, **options)
    except EmptySite:
        assert (partitioner, sizes) == ("size", "exponential") or partitioner == "dirichlet"
        return
    except SettingsError:  # some class would be at no site
        assert partitioner == "pathological"
        assert sites * classes < 40
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


def _classes_at(parts, labels):
    return [sorted(set(labels[rows].tolist())) for rows in parts]


@pytest.mark.parametrize("per_site", [1, 2, 5, 10])
def test_pathological_sites_have_so_many_classes_the_first_in_turn(per_site):
    labels = _DATA.train.labels.numpy()
    parts = _split(partitioner="pathological", sites=20, classes_per_site=per_site)
    held = _classes_at(parts, labels)
    assert {len(classes) for classes in held} == {per_site}
    for site, classes in enumerate(held):
        assert site % 10 in classes
    for value in range(10):
        shares = [(labels[rows] == value).sum() for rows in parts]
        shares = [share for share in shares if share]
        assert max(shares) - min(shares) <= 1
    if 1 < per_site < 10:
        assert len({tuple(classes) for classes in held}) > 10
        assert held != _classes_at(
            _split(partitioner="pathological", sites=20, classes_per_site=per_site, seed=2), labels
        )


def test_a_pathological_class_is_not_cut_in_the_order_of_the_data():
    labels = torch.zeros(400, dtype=torch.int64)
    part = Records(torch.zeros(400, 1), labels)
    data = Dataset("example", part, part, input_shape=(1,), classes=1)
    parts = _split(data, partitioner="pathological", sites=2, classes_per_site=1)
    assert parts[0].max() > 300
    assert parts[1].min() < 100


def test_pathological_refuses_what_leaves_a_class_out_or_has_too_few():
    def split(**changes):
        return _split(partitioner="pathological", **changes)

    with pytest.raises(SettingsError, match="classes_per_site=11 is more than the 10 classes"):
        split(classes_per_site=11)
    with pytest.raises(SettingsError, match="some of the 10 classes of 'example' would be at no"):
        split(sites=3, classes_per_site=3)
    with pytest.raises(TooFewRecords, match="30 sites would share one class of 'example'"):
        split(dataset=_dataset(records=60, classes=3), sites=30, classes_per_site=3)


@pytest.mark.parametrize(
    ("sizes", "counts"),
    # 400 rows by Flower Datasets' rule: floor(400 u / sum u), and the rest for the last site.
    [
        ("linear", [40, 80, 120, 160]),
        ("square", [13, 53, 120, 214]),
        ("exponential", [12, 34, 94, 260]),
    ],
)
def test_sizes_are_those_of_flower_datasets(sizes, counts):
    units = {"linear": lambda n: n, "square": np.square, "exponential": np.exp}[sizes]
    shares = units(np.linspace(1, 4, 4))
    expected = (shares / shares.sum() * 400).astype(int)
    expected[-1] += 400 - expected.sum()
    assert expected.tolist() == counts
    parts = _split(partitioner="size", sizes=sizes)
    assert [len(rows) for rows in parts] == counts
    assert parts[0].max() > 100  # drawn from all rows, not the first ones


def test_sites_too_small_by_their_size_are_an_error_that_says_what_to_do():
    with pytest.raises(EmptySite, match=r"Site 1 of 9 would hold 0 records.*data\.sizes=linear"):
        _split(partitioner="size", sizes="exponential", sites=9)
    with pytest.raises(EmptySite, match="Site 1 of 390"):
        _split(_dataset(records=8000), partitioner="size", sizes="exponential", sites=390)
    with pytest.raises(UnknownName, match=r"Unknown data\.sizes 'cubic'"):
        _split(partitioner="size", sizes="cubic")


@pytest.mark.parametrize("partitioner", PARTITIONERS)
@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("number", torch.linspace(-1, 1, 40)),
        ("tokens", torch.ones(40, 3, dtype=torch.int64)),
        ("survival", torch.ones(40, 2)),
        ("record", torch.ones(40, 2)),
    ],
)
def test_labels_that_are_no_classes_are_split_by_all_that_need_none(partitioner, kind, labels):
    origins = np.arange(40) % 4
    part = Records(torch.zeros(40, 1), labels, origins=origins)
    data = Dataset("example", part, part, (1,), 5, sites=tuple("abcd"), label_kind=kind)
    if partitioner in BY_CLASS:
        with pytest.raises(SettingsError, match="are none: choose iid or size or natural or drawn"):
            _split(data, partitioner=partitioner)
        return
    parts = _split(data, partitioner=partitioner, records_per_site=5)
    assert len(parts) == 4
    if partitioner != "drawn":
        assert sum(map(len, parts)) == 40


def test_natural_sites_are_those_of_the_data():
    for index, rows in enumerate(_split(partitioner="natural")):
        assert (_DATA.train.origins[rows] == index).all()


def test_natural_sites_are_called_as_in_the_data_as_far_as_sites_can_be():
    called = ("BISHOP OF CARLISLE", "Old Man's Wife (2)", "  x_1.b- ", "c-d")
    parts = _split(replace(_DATA, sites=called), partitioner="natural")
    names = ["BISHOP-OF-CARLISLE", "Old-Man-s-Wife-2", "x_1.b", "c-d"]
    assert [parts.name(index) for index in range(4)] == names
    for same in (("a b", "a-b", "c", "d"), ("a", "b", "c", "?")):
        with pytest.raises(DataInvalid, match="the same, or none"):
            _split(replace(_DATA, sites=same), partitioner="natural")


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
