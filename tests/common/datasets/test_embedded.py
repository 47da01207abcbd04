"""Tests of the data sets that come with scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn import datasets as bundled

from lepton_common.datasets.catalog import load_dataset


@pytest.mark.parametrize(
    ("name", "train", "test", "shape", "classes", "low", "high"),
    [
        ("digits", 1437, 360, (1, 8, 8), 10, 0.0, 1.0),
        ("breast_cancer", 455, 114, (30,), 2, -1.0, 1.0),
    ],
)
def test_counts_shapes_and_ranges(name, train, test, shape, classes, low, high):
    data = load_dataset(name, None, "public_ranges")
    assert (len(data.train), len(data.test)) == (train, test)
    assert (data.input_shape, data.classes, data.unit, data.sites) == (shape, classes, "row", ())
    for part in (data.train, data.test):
        assert part.features.dtype == torch.float32
        assert part.labels.dtype == torch.int64
        assert tuple(part.features.shape[1:]) == shape
        assert low <= float(part.features.min()) < float(part.features.max()) <= high
        assert set(part.labels.tolist()) == set(range(classes))


def test_train_and_test_are_all_records_each_once():
    data = load_dataset("digits", None, "public_ranges")
    both = torch.cat([data.train.features, data.test.features]).reshape(-1, 64).numpy()
    whole = bundled.load_digits().data.astype(np.float32) / 16
    assert sorted(map(bytes, both)) == sorted(map(bytes, whole))


def test_a_data_set_is_loaded_once():
    first = load_dataset("digits", None, "public_ranges")
    assert load_dataset("digits", None, "public_ranges") is first
