"""Tests of scattering features against kymatio's NumPy front end, and of how they are kept."""

import os

import numpy as np
import pytest
import torch

from lepton_common.datasets import scattering
from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.embedded import digits
from lepton_common.datasets.preparation import PER_RECORD
from lepton_common.datasets.scattering import scattering_features
from lepton_common.errors import SettingsError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "scattering"


def _images(count, colours=1, side=16, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random((count, colours, side, side), dtype=np.float32)


def _grouped(coefficients, groups=27):
    """Group normalisation written out, float64."""
    parts = coefficients.reshape(len(coefficients), groups, -1)
    centred = parts - parts.mean(axis=2, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(axis=2, keepdims=True) + 1e-5)
    return scaled.reshape(coefficients.shape)


def _reference(images):
    from kymatio.scattering2d.frontend.numpy_frontend import ScatteringNumPy2D

    found = ScatteringNumPy2D(J=2, shape=images.shape[2:], L=8)(images.astype(np.float64))
    return _grouped(found.reshape(len(images), -1, *found.shape[3:]))


@pytest.mark.parametrize(("colours", "side"), [(1, 8), (1, 28), (3, 16)])
def test_features_are_those_of_the_numpy_front_end(colours, side):
    images = _images(5, colours, side)
    found = scattering_features(images)
    assert found.dtype == torch.float32
    assert found.shape == (5, 81 * colours, side // 4, side // 4)
    np.testing.assert_allclose(found.numpy(), _reference(images), rtol=2e-3, atol=2e-3)


def test_groups_of_channels_are_normalised_by_themselves():
    groups = scattering_features(_images(4, 3)).reshape(4, 27, -1).double()
    assert groups.mean(2).abs().max() < 1e-3
    assert 0.1 < groups.square().mean(2).min() < groups.square().mean(2).max() < 1.01


def test_a_records_features_depend_on_no_other_record():
    images = _images(300)  # more than go through the transform at once
    together = scattering_features(images)
    for index in (0, 7, 249, 250, 299):
        alone = scattering_features(images[index : index + 1])
        assert torch.equal(alone[0], together[index])
    others = _images(300, seed=1)
    others[7] = images[7]
    assert torch.equal(scattering_features(others)[7], together[7])


def test_kept_features_are_those_that_were_computed(cache, monkeypatch):
    images = _images(12)
    first = scattering_features(images)
    (path,) = cache.iterdir()
    if os.name == "posix":
        assert (path.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)
    monkeypatch.setattr(scattering, "_compute", None)  # nothing is computed again
    assert torch.equal(scattering_features(images), first)


def test_other_images_or_parameters_are_not_taken_from_the_cache(cache, monkeypatch):
    images = _images(12)
    scattering_features(images)
    monkeypatch.setattr(scattering, "_BLOCK", 5)
    scattering_features(images)
    assert len(list(cache.iterdir())) == 1 + 3
    monkeypatch.setattr(scattering, "GROUPS", 81)
    scattering_features(images)
    assert len(list(cache.iterdir())) == 1 + 3 + 3
    changed = images.copy()
    changed[11, 0, 3, 3] += 1e-6
    scattering_features(changed)
    assert len(list(cache.iterdir())) == 1 + 3 + 3 + 1  # the other blocks are the same


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: bytes([data[0] ^ 1]) + data[1:],
        lambda data: data[:500] + bytes([data[500] ^ 1]) + data[501:],
        lambda data: bytes(len(data)),
    ],
    ids=["empty", "short", "cut", "long", "digest", "value", "zeros"],
)
def test_a_damaged_file_is_computed_anew(cache, damage):
    images = _images(3)
    first = scattering_features(images)
    (path,) = cache.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert torch.equal(scattering_features(images), first)
    assert path.read_bytes() == whole


def test_the_file_of_other_images_is_not_taken_for_these(cache):
    ours, theirs = _images(3), _images(3, seed=1)
    first = scattering_features(ours)
    (path,) = cache.iterdir()
    scattering_features(theirs)
    (foreign,) = set(cache.iterdir()) - {path}
    path.write_bytes(foreign.read_bytes())
    assert torch.equal(scattering_features(ours), first)


def test_a_cache_that_cannot_be_written_is_no_reason_to_fail(cache):
    cache.parent.parent.mkdir(exist_ok=True)
    cache.parent.write_text("a file where the folder should be")
    images = _images(2)
    assert torch.equal(scattering_features(images), scattering_features(images))


def test_no_images_have_no_features():
    assert scattering_features(_images(0)).shape == (0, 81, 4, 4)


def test_what_takes_long_is_announced_once(capsys, monkeypatch):
    monkeypatch.setattr(scattering, "_LONG", 10)
    for _ in range(2):
        scattering_features(_images(10))
    assert capsys.readouterr().err == "Scattering 10 images, once ...\n"
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    scattering_features(_images(11))
    assert "Scattering 11 images, once" in capsys.readouterr().err


def test_digits_are_prepared_and_their_labels_stay():
    plain, scattered = digits(None, "public_ranges"), digits(None, "scattering")
    assert scattered.input_shape == (81, 2, 2)
    assert scattered.train.features.shape == (1437, 81, 2, 2)
    assert scattered.train.labels.tolist() == plain.train.labels.tolist()
    assert scattered.test.labels.tolist() == plain.test.labels.tolist()


@pytest.mark.parametrize(
    ("dataset", "prepare", "offered"),
    [
        ("breast_cancer", "scattering", "public_ranges"),
        ("breast_cancer", "site_statistics", "public_ranges"),
        ("heart_disease", "scattering", "public_ranges and site_statistics"),
        ("digits", "site_statistics", "public_ranges and scattering"),
        ("mnist", "site_statistics", "public_ranges and scattering"),
        ("fashion_mnist", "site_statistics", "public_ranges and scattering"),
        ("cifar10", "site_statistics", "public_ranges and scattering"),
    ],
)
def test_what_a_data_set_does_not_offer_is_refused_before_it_is_read(dataset, prepare, offered):
    with pytest.raises(SettingsError, match=f"'{dataset}' offers {offered} only"):
        load_dataset(dataset, "no such folder", prepare)


def test_what_is_computed_from_a_record_alone_is_what_privacy_allows():
    assert {"public_ranges", "scattering"} == PER_RECORD
