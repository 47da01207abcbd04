"""The layout of a query's sum: every cell once, and a norm that no record can exceed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lepton_client.training.statistics import bounded_sum
from lepton_common.datasets.records import Dataset, Records
from lepton_common.errors import SettingsError
from lepton_common.statistics import StatisticsQuery, cells_of, column_names

ALL = StatisticsQuery(bins=5, features=None)


def dataset(kind="class", classes=3, shape=(4,), **facts):
    nothing = Records(torch.zeros(0, *shape), torch.zeros(0))
    return Dataset("toy", nothing, nothing, shape, classes, label_kind=kind, **facts)


def test_every_value_of_the_sum_stands_in_one_place():
    cells = cells_of(ALL, dataset())
    places = [0, *range(cells.size)[cells.labels], *range(cells.size)[cells.histograms],
              *range(cells.size)[cells.moments]]  # fmt: skip
    assert places == list(range(1 + 3 + 4 * 6 + 2 * 4))
    assert cells.blocks == 10


@pytest.mark.parametrize(
    ("kind", "classes", "labels", "width"),
    [("class", 3, 3, 4), ("tokens", 9, 9, 0), ("number", 0, 0, 5), ("survival", 0, 2, 4),
     ("record", 0, 2, 4)],
)  # fmt: skip
def test_each_kind_of_label_has_its_cells(kind, classes, labels, width):
    cells = cells_of(ALL, dataset(kind, classes))
    assert (cells.label_values, cells.width) == (labels, width)
    assert len(column_names(cells, dataset(kind, classes))) == width


def test_fewer_features_have_fewer_blocks_and_another_name():
    some = cells_of(StatisticsQuery(bins=5, features=[3, 1]), dataset())
    assert some.columns == (3, 1)
    assert some.blocks == 6
    assert some.digest != cells_of(StatisticsQuery(bins=5, features=[1, 3]), dataset()).digest
    named = dataset(features=("age", "sex", "sugar", "rate"))
    assert column_names(some, named) == ["rate", "sex"]
    assert column_names(cells_of(ALL, dataset(shape=(2, 2))), dataset(shape=(2, 2)))[3] == (
        "value 1,1"
    )


@pytest.mark.parametrize("features", [[4], [0, 0], [0, 10**9]])
def test_features_that_are_not_there_are_named(features):
    with pytest.raises(SettingsError, match="the features 0 to 3"):
        cells_of(StatisticsQuery(bins=5, features=features), dataset())


def test_a_query_is_named_by_its_run_alone():
    cells = cells_of(ALL, dataset())
    assert (cells.probe("a") == cells.probe("a")).all()
    assert (cells.probe("a") != cells.probe("b")).any()
    assert np.abs(cells.probe("a")).max() <= 1


@given(
    st.sampled_from(["class", "survival", "number", "tokens", "record"]),
    st.lists(
        st.lists(st.floats(width=32), min_size=4, max_size=4),  # NaN and infinite ones too
        min_size=1,
        max_size=4,
    ),
    st.integers(-3, 5),
)
def test_no_person_moves_the_sum_by_more_than_one(kind, rows, label):
    data = dataset(kind, 3)
    count = len(rows)
    labels = {
        "class": torch.full((count,), label),
        "tokens": torch.full((count, 2), label),
        "number": torch.full((count,), float(label)),
        "survival": torch.tensor([[7.0, 1.0]] * count),
        "record": torch.tensor([[0.0, *row] for row in rows]),
    }[kind]
    records = Records(torch.tensor(rows), labels, units=np.zeros(count, np.int64))
    for query in (ALL, replace(ALL, bins=2, features=[0])):
        if kind == "tokens" and query.features:
            continue
        total = bounded_sum(records, cells_of(query, data))
        assert np.isfinite(total).all()
        assert np.linalg.norm(total) <= 1 + 1e-12
