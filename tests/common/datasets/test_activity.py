"""Tests of people's movement: the published people apart, and made-up windows that can be told."""

import numpy as np
import pytest
import torch

from lepton_common.datasets.activity import TEST_PEOPLE, TRAIN_PEOPLE, _read, uci_har
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import DataInvalid, DataMissing, SettingsError


def _checked(data):
    assert check(data.train, data) is data.train
    assert check(data.test, data) is data.test
    assert data.input_shape == (128, 9)
    assert (data.unit, data.classes, data.label_kind) == ("person", 6, "class")
    assert set(data.train.units.tolist()) == set(TRAIN_PEOPLE)
    assert set(data.test.units.tolist()) == set(TEST_PEOPLE)
    assert not set(TEST_PEOPLE) & set(TRAIN_PEOPLE)
    for site, person in enumerate(TRAIN_PEOPLE):
        assert data.sites[site] == f"person-{person:02}"
        assert set(data.train.units[data.train.origins == site].tolist()) == {person}
    assert float(data.train.features.abs().max()) <= 1
    return data


def test_the_published_people_are_in_train_or_in_test(shared_data):
    data = _checked(uci_har(str(shared_data), "public_ranges"))
    assert (len(data.train), len(data.test)) == (7352, 2947)
    assert torch.bincount(data.test.labels).tolist() == [496, 471, 420, 491, 532, 537]
    clipped = (data.train.features.abs() == 1).double().mean()
    assert 0 < clipped < 0.001
    # The first published window: who stands feels one g along the first axis.
    first = data.train.features[data.train.units == 1]
    standing = first[data.train.labels[data.train.units == 1] == 4]
    assert float(standing[:, :, 6].mean()) == pytest.approx(0.5, abs=0.05)


def test_made_up_people_have_the_same_form_and_depend_on_nothing():
    data = _checked(uci_har(MADE_UP, "public_ranges"))
    assert (len(data.train), len(data.test)) == (252, 108)
    assert torch.bincount(data.train.labels).tolist() == [42] * 6
    torch.manual_seed(1)
    again = uci_har(MADE_UP, "public_ranges")
    assert torch.equal(data.train.features, again.train.features)


def test_made_up_activities_are_told_by_gravity_and_steps_and_not_by_gravity_alone():
    data = uci_har(MADE_UP, "public_ranges")

    def seen(records):
        gravity = records.features[:, :, 6:].mean(1)
        return torch.cat([gravity, records.features[:, :, :3].std(1)], 1)

    def accuracy(columns):
        train, test = seen(data.train)[:, :columns], seen(data.test)[:, :columns]
        means = torch.stack([train[data.train.labels == label].mean(0) for label in range(6)])
        said = torch.cdist(test, means).argmin(1)
        return float((said == data.test.labels).double().mean())

    assert accuracy(6) == 1.0
    assert 0.7 < accuracy(3) < 0.95


def test_what_cannot_be_downloaded_says_where_it_must_lie(monkeypatch, tmp_path):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match=r"folder that holds 'uci-har/uci-har-inertial\.npz'"):
        uci_har(None, "public_ranges")
    with pytest.raises(SettingsError, match="offers public_ranges only"):
        uci_har(MADE_UP, "scattering")


def test_a_file_of_another_form_is_invalid(tmp_path):
    path = tmp_path / "file.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataInvalid, match="arrays x, y and subject"):
        _read(path)
    np.savez(path, x=np.zeros((2, 128, 9)), y=np.zeros(2))
    with pytest.raises(DataInvalid, match="arrays x, y and subject"):
        _read(path)
    for shape, people in (((2, 9, 128), 2), ((2, 128, 9), 3)):
        np.savez(path, x=np.zeros(shape), y=np.zeros(2), subject=np.ones(people))
        with pytest.raises(DataInvalid, match=r"windows of shape \(128, 9\)"):
            _read(path)
