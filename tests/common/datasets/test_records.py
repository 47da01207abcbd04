"""Tests that faulty records are refused without a word about their values."""

import numpy as np
import pytest
import torch

from lepton_common.datasets.records import Dataset, Records, check
from lepton_common.errors import DataInvalid

_SECRET = 8675309.25


def _dataset(records):
    return Dataset("example", records, records, input_shape=(2,), classes=3)


def _records(features=None, labels=None):
    features = torch.full((4, 2), _SECRET) if features is None else features
    return Records(features, torch.tensor([0, 1, 2, 0]) if labels is None else labels)


def _with(value):
    features = torch.full((4, 2), _SECRET)
    features[2, 1] = value
    return features


def test_good_records_pass():
    records = _records()
    assert check(records, _dataset(records)) is records
    empty = Records(torch.zeros(0, 2), torch.zeros(0, dtype=torch.int64))
    assert check(empty, _dataset(empty)) is empty


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (_records(_with(float("nan"))), "not finite"),
        (_records(_with(float("inf"))), "not finite"),
        (_records(_with(-float("inf"))), "not finite"),
        (_records(torch.full((4, 3), _SECRET)), "should have shape"),
        (_records(torch.full((4,), _SECRET)), "should have shape"),
        (_records(torch.full((4, 2, 1), _SECRET)), "should have shape"),
        (_records(labels=torch.tensor([0, 1, 8675309, 0])), "should lie in 0..2"),
        (_records(labels=torch.tensor([0, 1, 3, 0])), "should lie in 0..2"),
        (_records(labels=torch.tensor([0, -8675309, 2, 0])), "should lie in 0..2"),
        (_records(labels=torch.tensor([0, 1, 2])), "one int64 label for each record"),
        (_records(labels=torch.tensor([0, 1, 2, 0, 1])), "one int64 label for each record"),
        (_records(labels=torch.tensor([0.0, 1.5, 2.0, 0.0])), "float32 and torch.float32"),
        (_records(torch.full((4, 2), _SECRET, dtype=torch.float64)), "float64 and torch.int64"),
    ],
    ids=[
        "nan", "inf", "minus inf", "wide", "flat", "deep", "label", "next label", "negative",
        "fewer labels", "more labels", "fractional labels", "double",
    ],
)  # fmt: skip
def test_faulty_records_are_refused_without_their_values(records, said):
    with pytest.raises(DataInvalid, match=said) as refused:
        check(records, _dataset(records))
    assert "8675309" not in str(refused.value)
    assert "nan" not in str(refused.value).replace("NaN", "")


def test_taking_rows_takes_everything_that_belongs_to_them():
    records = Records(
        torch.arange(8.0).reshape(4, 2),
        torch.tensor([0, 1, 2, 0]),
        units=np.array([5, 5, 6, 7]),
        origins=np.array([0, 0, 1, 1]),
    )
    some = records.take(np.array([3, 1]))
    assert some.features.tolist() == [[6, 7], [2, 3]]
    assert some.labels.tolist() == [0, 1]
    assert some.units.tolist() == [7, 5]
    assert some.origins.tolist() == [1, 0]
    assert (len(some), some.unit_count, records.unit_count) == (2, 2, 3)
    assert len(records.take(np.array([], np.int64))) == 0


def test_every_record_is_a_unit_where_no_unit_is_named():
    assert _records().unit_count == 4
    assert _records().take(np.array([0])).units is None
