"""Tests of image data sets in NumPy archives, published and made up."""

import numpy as np
import pytest
import torch

from lepton_common.datasets.image_archives import cifar10_subset, pneumoniamnist, read_npz
from lepton_common.datasets.images import cifar10, fashion_mnist, mnist
from lepton_common.datasets.made_up_images import class_patterns
from lepton_common.datasets.records import check
from lepton_common.datasets.source import MADE_UP
from lepton_common.errors import ChecksumMismatch, DataInvalid, DataMissing, SettingsError


@pytest.mark.parametrize(
    ("loader", "seed", "shape", "counts"),
    [
        (pneumoniamnist, 11, (1, 28, 28), [100, 300]),
        (cifar10_subset, 12, (3, 32, 32), [40] * 10),
        (mnist, 21, (1, 28, 28), [40] * 10),
        (fashion_mnist, 22, (1, 28, 28), [40] * 10),
        (cifar10, 23, (3, 32, 32), [40] * 10),
    ],
)
def test_who_knows_how_they_are_made_names_every_made_up_image(loader, seed, shape, counts):
    data = loader(MADE_UP, "public_ranges")
    assert data.input_shape == shape
    assert np.bincount(data.train.labels).tolist() == counts
    patterns = torch.from_numpy(class_patterns(data.classes, shape, seed)).float().flatten(1)
    for part in (check(data.train, data), check(data.test, data)):
        named = (part.features.flatten(1) @ patterns.T).argmax(1)
        assert torch.equal(named, part.labels)
    again = loader(MADE_UP, "public_ranges")
    assert torch.equal(again.train.features, data.train.features)


def test_chest_x_rays_have_the_published_counts(shared_data):
    data = pneumoniamnist(str(shared_data), "public_ranges")
    assert data.input_shape == (1, 28, 28)
    assert np.bincount(data.train.labels).tolist() == [1214, 3494]
    assert np.bincount(data.test.labels).tolist() == [234, 390]
    assert -1 <= float(data.train.features.min()) < float(data.train.features.max()) <= 1
    assert "unit" in data.notes[0]
    check(data.train, data)


def test_the_part_of_cifar10_has_its_channels_first(shared_data):
    data = cifar10_subset(str(shared_data), "public_ranges")
    assert tuple(data.train.features.shape) == (20_000, 3, 32, 32)
    assert np.bincount(data.train.labels).tolist() == [2000] * 10
    assert np.bincount(data.test.labels).tolist() == [500] * 10
    means = (data.train.features.mean((0, 2, 3)) + 1) / 2
    # Of the whole published training set; a third of it comes close.
    assert means.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.01)


def test_statistics_of_sites_are_not_offered():
    with pytest.raises(SettingsError, match="offers"):
        cifar10_subset(MADE_UP, "site_statistics")


def test_without_a_folder_the_error_says_that_nothing_can_be_downloaded(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    with pytest.raises(DataMissing, match=r"set data\.root .* or to made-up"):
        pneumoniamnist(None, "public_ranges")


def test_another_file_in_the_place_of_the_published_one_is_refused(tmp_path):
    (tmp_path / "cifar10-subset").mkdir()
    (tmp_path / "cifar10-subset" / "cifar10-20k-5k.npz").write_bytes(b"PK")
    with pytest.raises(ChecksumMismatch):
        cifar10_subset(str(tmp_path), "public_ranges")


@pytest.mark.parametrize("fault", ["text", "short", "missing", "type", "pickled"])
def test_no_archive_of_unsigned_bytes(tmp_path, fault):
    path = tmp_path / "file.npz"
    arrays = {
        "missing": {"b": np.zeros(3, np.uint8)},
        "type": {"a": np.zeros(3, np.float32)},
        "pickled": {"a": np.array([{}], object)},
    }
    np.savez(path, **arrays.get(fault, {"a": np.zeros(3, np.uint8)}))
    if fault == "text":
        path.write_text("no archive")
    if fault == "short":
        path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataInvalid, match="NumPy archive"):
        read_npz(path, ("a",))
