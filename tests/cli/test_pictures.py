"""Tests of the picture of who holds what: every kind of label has groups that hold all records."""

import numpy as np
import pytest
import torch

from lepton_cli.pictures import label_groups
from lepton_common.datasets.records import Dataset, Records


def _dataset(labels, kind, classes=0):
    part = Records(torch.zeros(len(labels), 1), labels)
    return Dataset("example", part, part, (1,), classes, label_kind=kind)


def test_classes_are_their_own_groups_even_those_that_nobody_holds():
    groups, names = label_groups(_dataset(torch.tensor([0, 2, 2]), "class", classes=4))
    assert groups.tolist() == [0, 2, 2]
    assert names == ["0", "1", "2", "3"]


def test_numbers_fall_into_fifths_of_all_records():
    groups, names = label_groups(_dataset(torch.linspace(-1, 1, 1000), "number"))
    assert np.abs(np.bincount(groups) - 200).max() <= 1
    assert names[0] == "-1 to -0.6"
    assert names[-1] == "0.6 to 1"


def test_equal_numbers_are_in_one_group():
    labels = torch.cat([torch.ones(60), torch.linspace(-1, 0.9, 40)])
    groups, names = label_groups(_dataset(labels, "number"))
    assert len(set(groups[:60].tolist())) == 1
    assert groups.max() == len(names) - 1
    groups, names = label_groups(_dataset(torch.full((5,), 0.5), "number"))
    assert (groups.tolist(), names) == ([0] * 5, ["0.5 to 0.5"])


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("tokens", torch.ones(7, 3, dtype=torch.int64)),
        ("survival", torch.ones(7, 2)),
        ("record", torch.ones(7, 2)),
    ],
)
def test_other_labels_are_counted_together(kind, labels):
    groups, names = label_groups(_dataset(labels, kind))
    assert (groups.tolist(), names) == ([0] * 7, ["records"])
