"""A site's bounded sum, against the same figures counted one by one."""

import numpy as np
import pytest
import torch

from lepton_client.training.statistics import bounded_sum
from lepton_common.datasets.records import Dataset, Records
from lepton_common.statistics import MOMENTS_NORM, StatisticsQuery, cells_of

QUERY = StatisticsQuery(bins=4, features=None)


def summed(records, kind="class", classes=2):
    """Returns the sum in steps of one person: count, labels, histograms [c, b + 1], moments."""
    shape = tuple(records.features.shape[1:])
    cells = cells_of(QUERY, Dataset("toy", records, records, shape, classes, label_kind=kind))
    total = bounded_sum(records, cells) * np.sqrt(cells.blocks)
    histograms = total[cells.histograms].reshape(cells.width, 5)
    moments = total[cells.moments].reshape(2, cells.width) * MOMENTS_NORM
    return total[0], total[cells.labels], histograms, moments


def test_rows_are_counted_where_they_belong():
    features = torch.tensor([[-1.0, 0.1], [0.9, 0.2], [1.0, 0.0], [-0.6, -0.01]])
    count, labels, histograms, moments = summed(Records(features, torch.tensor([0, 1, 1, 1])))
    assert count == pytest.approx(4)
    assert labels == pytest.approx([1, 3])
    assert histograms == pytest.approx(np.array([[2, 0, 0, 2, 0], [0, 1, 3, 0, 0]]), abs=1e-6)
    assert moments[0] == pytest.approx([0.3, 0.29], abs=1e-6)
    assert moments[1] == pytest.approx(((features**2).sum(0) - 2).numpy(), abs=1e-6)


def test_a_person_of_many_rows_counts_once():
    features = torch.tensor([[-0.9]] * 999 + [[0.9]])
    units = np.array([7] * 999 + [8])
    count, labels, histograms, moments = summed(
        Records(features, torch.tensor([0] * 500 + [1] * 500), units)
    )
    assert count == pytest.approx(2)
    assert labels == pytest.approx([500 / 999, 499 / 999 + 1])
    assert histograms[0] == pytest.approx([1, 0, 0, 1, 0], abs=1e-5)
    assert moments[0] == pytest.approx([0.0], abs=1e-5)


def test_what_is_out_of_range_counts_as_its_end_and_nan_as_missing():
    features = torch.tensor([[1e30], [-torch.inf], [torch.nan], [0.3]])
    count, _, histograms, moments = summed(Records(features, torch.zeros(4, dtype=torch.int64)))
    assert count == pytest.approx(4)
    assert histograms[0] == pytest.approx([1, 0, 1, 1, 1], abs=1e-6)
    assert moments[:, 0] == pytest.approx([0.3, 0.5 + 0.5 + 0.09 - 0.5], abs=1e-6)


@pytest.mark.parametrize("label", [-1, 2, 10**12])
def test_a_label_that_there_is_not_is_in_no_cell(label):
    _, labels, _, _ = summed(Records(torch.zeros(2, 1), torch.tensor([0, label])))
    assert labels == pytest.approx([1, 0])


def test_other_kinds_of_labels():
    features = torch.zeros(2, 1)
    survival = torch.tensor([[3.0, 1.0], [9.0, 0.0]])
    assert summed(Records(features, survival), "survival", 0)[1] == pytest.approx([1, 1])
    number = summed(Records(features, torch.tensor([0.5, 0.25])), "number", 0)
    assert number[2][1] == pytest.approx([0, 0, 1, 1, 0], abs=1e-6)
    assert number[3][0] == pytest.approx([0, 0.75], abs=1e-6)
    tokens = torch.tensor([[1, 1, -1, 0], [-1, -1, -1, -1]])
    assert summed(Records(features, tokens), "tokens", 2)[1] == pytest.approx([0.25, 0.5])


def test_a_site_without_records_sums_to_nothing():
    empty = Records(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    assert not any(np.asarray(part).any() for part in summed(empty))


def test_pieces_add_up_to_the_whole():
    generator = torch.Generator().manual_seed(1)
    features = torch.rand(9000, 3, generator=generator) * 2 - 1
    count, _, histograms, moments = summed(Records(features, torch.zeros(9000, dtype=torch.long)))
    assert count == pytest.approx(9000)
    for column in range(3):
        values = features[:, column].double().numpy()
        expected, _ = np.histogram(values, bins=4, range=(-1, 1))
        assert histograms[column, :4] == pytest.approx(expected, rel=1e-6)
        assert moments[0, column] == pytest.approx(values.sum(), rel=1e-5, abs=1e-3)
