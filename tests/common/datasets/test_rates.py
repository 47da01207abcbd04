"""Tests of daily series: days once in training, the test later, and forecasts as good as can be."""

import gzip
import math

import numpy as np
import pytest
import torch

from lepton_common.datasets import rates
from lepton_common.datasets.rates import COUNTRIES, NOISE, demand, exchange_rate
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import DataInvalid


def _checked(data, width, sites):
    assert check(data.train, data) is data.train
    assert check(data.test, data) is data.test
    assert data.input_shape == (width, 1)
    assert (data.unit, data.classes, data.label_kind) == ("row", 0, "number")
    assert len(data.sites) == sites
    for part in (data.train, data.test):
        assert len(set(np.bincount(part.origins, minlength=sites).tolist())) == 1
    return data


def _rmse(said, labels):
    return float((said - labels).square().mean().sqrt())


def test_published_rates_are_cut_without_a_day_twice_and_tested_on_the_last_fifth(shared_data):
    data = _checked(exchange_rate(str(shared_data), "public_ranges"), 30, 8)
    assert (len(data.train), len(data.test)) == (8 * 195, 8 * (1518 - 30))
    path = shared_data / "exchange-rate" / "exchange_rate.txt.gz"
    published = np.loadtxt(gzip.decompress(path.read_bytes()).splitlines(), delimiter=",")
    low, high = rates._LOW, rates._HIGH
    assert (low < published.min(0)).all()
    assert (published.max(0) < high).all()
    for site in range(8):
        features = data.train.features[data.train.origins == site][..., 0]
        labels = data.train.labels[data.train.origins == site]
        days = 2 * (published[: 31 * 195, site] - low[site]) / (high - low)[site] - 1
        months = days.reshape(195, 31)
        np.testing.assert_allclose(features[:, -1], months[:, 29], atol=1e-6)
        np.testing.assert_allclose(labels, months[:, 30], atol=1e-6)
        changes = np.clip(30 * np.diff(months[:, :30], axis=1), -1, 1)
        np.testing.assert_allclose(features[:, :-1], changes, atol=1e-4)
        assert (np.abs(changes) == 1).mean() < 0.1
        last = data.test.labels[data.test.origins == site][-1]
        expected = 2 * (published[-1, site] - low[site]) / (high - low)[site] - 1
        assert float(last) == pytest.approx(expected, abs=1e-6)


def test_the_best_forecast_of_made_up_rates_is_known():
    data = _checked(exchange_rate(MADE_UP, "public_ranges"), 30, 8)
    assert (len(data.train), len(data.test)) == (8 * 32, 8 * 218)
    best = _rmse(0.9 * data.test.features[:, -1, 0], data.test.labels)
    assert best == pytest.approx(NOISE, rel=0.05)
    mean = _rmse(data.train.labels.mean(), data.test.labels)
    assert mean == pytest.approx(NOISE / math.sqrt(1 - 0.81), rel=0.1)
    assert torch.equal(data.test.labels, exchange_rate(MADE_UP, "public_ranges").test.labels)


def test_the_best_forecast_of_made_up_sales_is_known():
    data = _checked(demand(None, "public_ranges"), 28, 10)
    assert (len(data.train), len(data.test)) == (10 * 34, 10 * 220)
    # The mean of the same day of the four weeks before: its noise is added to the next day's.
    weekly = data.test.features[:, ::7, 0].mean(1)
    assert _rmse(weekly, data.test.labels) == pytest.approx(NOISE * math.sqrt(1.25), rel=0.05)
    assert _rmse(data.train.labels.mean(), data.test.labels) > 0.3
    assert torch.equal(data.train.labels, demand(MADE_UP, "public_ranges").train.labels)
    assert len(COUNTRIES) == 8


@pytest.mark.parametrize(
    "content",
    [b"no gzip", gzip.compress(b""), gzip.compress(b"1,2,3\n"), gzip.compress(b"a" + 7 * b",1"),
     gzip.compress("é".encode()), gzip.compress(b"1,2,3,4,5,6,7,8\n")[:-9]],
    ids=range(6),
)  # fmt: skip
def test_a_file_of_another_form_is_invalid(tmp_path, content):
    path = tmp_path / "rates.gz"
    path.write_bytes(content)
    with pytest.raises(DataInvalid, match="8 comma-separated columns"):
        rates._read(path)
