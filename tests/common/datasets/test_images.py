"""Tests of image files in their published forms, whole and broken."""

import gzip
import io
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_common.datasets.catalog import load_dataset
from lepton_common.datasets.images import read_cifar_binary, read_idx
from lepton_common.datasets.scattering import scattering_features
from lepton_common.errors import ChecksumMismatch, DataInvalid


def _idx(array):
    sizes = b"".join(size.to_bytes(4) for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.gz"


@pytest.mark.parametrize("shape", [(5,), (2, 3), (2, 3, 4), (0, 3)])
def test_an_idx_file_is_read_as_it_was_written(path, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path.write_bytes(gzip.compress(_idx(array)))
    np.testing.assert_array_equal(read_idx(path), array)


_GOOD = _idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        _GOOD[:3],
        _GOOD[:10],
        _GOOD[:-1],
        _GOOD + b"\0",
        b"\0\1" + _GOOD[2:],
        b"\0\0\x0d" + _GOOD[3:],
        b"\0\0\x08\xff" + _GOOD[4:],
        b"\0\0\x08\x03" + b"\xff" * 12 + bytes(24),
    ],
    ids=["empty", "magic", "sizes", "short", "long", "zeros", "floats", "rank", "huge"],
)
def test_a_malformed_idx_file_is_refused(path, data):
    path.write_bytes(gzip.compress(data))
    with pytest.raises(DataInvalid, match="fetch it again"):
        read_idx(path)


def test_a_missing_or_uncompressed_idx_file_is_refused(path):
    with pytest.raises(DataInvalid):
        read_idx(path)
    path.write_bytes(_GOOD)
    with pytest.raises(DataInvalid):
        read_idx(path)


@settings(max_examples=200)
@given(st.binary(max_size=60))
def test_any_content_of_an_idx_file_is_an_array_or_invalid(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "content.gz"
    path.write_bytes(gzip.compress(data, 1))
    try:
        array = read_idx(path)
    except DataInvalid:
        return
    assert _idx(array) == data


def test_every_changed_byte_of_a_gzip_file_is_refused_or_harmless(path):
    whole = gzip.compress(_GOOD)
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            array = read_idx(path)
        except DataInvalid:
            continue
        assert _idx(array) == _GOOD


def test_every_cut_of_a_gzip_file_is_refused(path):
    whole = gzip.compress(_GOOD)
    for stop in range(len(whole)):
        path.write_bytes(whole[:stop])
        with pytest.raises(DataInvalid):
            read_idx(path)


def _batches(count=2):
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{index}.bin" for index in range(1, 6)), "test_batch.bin"]
    rows = {name: rng.integers(0, 256, (count, 3073), dtype=np.uint8) for name in names}
    for batch in rows.values():
        batch[:, 0] %= 10
    return rows


def _archive(path, files, mode="w:gz"):
    with tarfile.open(path, mode) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_cifar_archive_is_read_in_order(tmp_path):
    rows = _batches()
    files = {name: rows[name].tobytes() for name in reversed(rows)}
    _archive(tmp_path / "cifar.tar.gz", {"batches.meta.txt": b"airplane", **files})
    train, test = read_cifar_binary(tmp_path / "cifar.tar.gz", "public_ranges")
    expected = np.concatenate([rows[f"data_batch_{index}.bin"] for index in range(1, 6)])
    for records, wanted in ((train, expected), (test, rows["test_batch.bin"])):
        assert records.labels.tolist() == wanted[:, 0].tolist()
        assert records.features.shape == (len(wanted), 3, 32, 32)
        assert records.features.dtype == torch.float32
        back = ((records.features + 1) * 127.5).round().to(torch.uint8).numpy()
        np.testing.assert_array_equal(back.reshape(-1, 3072), wanted[:, 1:])
        assert -1.0 <= float(records.features.min()) < float(records.features.max()) <= 1.0


def test_a_cifar_archive_is_prepared_as_scattering_features(tmp_path, monkeypatch):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path / "cache"))
    rows = _batches()
    _archive(tmp_path / "cifar.tar.gz", {name: rows[name].tobytes() for name in rows})
    train, test = read_cifar_binary(tmp_path / "cifar.tar.gz", "scattering")
    images = rows["test_batch.bin"][:, 1:].reshape(-1, 3, 32, 32).astype(np.float32)
    assert train.features.shape == (10, 243, 8, 8)
    assert torch.equal(test.features, scattering_features(images / np.float32(255)))
    assert test.labels.tolist() == rows["test_batch.bin"][:, 0].tolist()


@pytest.mark.parametrize("name", ["data_batch_3.bin", "test_batch.bin"])
def test_a_cifar_archive_without_a_batch_or_with_a_torn_one_is_refused(tmp_path, name):
    path, files = tmp_path / "cifar.tar.gz", {n: rows.tobytes() for n, rows in _batches(1).items()}
    _archive(path, {n: data for n, data in files.items() if n != name})
    with pytest.raises(DataInvalid, match="not the CIFAR-10 binary archive"):
        read_cifar_binary(path, "public_ranges")
    _archive(path, {**files, name: files[name][:-1]})
    with pytest.raises(DataInvalid, match="not the CIFAR-10 binary archive"):
        read_cifar_binary(path, "public_ranges")


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    with pytest.raises(DataInvalid):
        read_cifar_binary(path, "public_ranges")
    _archive(tmp_path / "whole", {name: rows.tobytes() for name, rows in _batches(1).items()})
    whole = (tmp_path / "whole").read_bytes()
    for data in (b"", b"junk" * 1000, whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(DataInvalid):
            read_cifar_binary(path, "public_ranges")


def test_an_archive_damaged_in_its_middle_is_refused(tmp_path):
    path = tmp_path / "cifar.tar.gz"
    _archive(path, {name: rows.tobytes() for name, rows in _batches(1).items()})
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2 : len(whole) // 2 + 64] = bytes(64)
    path.write_bytes(whole)
    with pytest.raises(DataInvalid):
        read_cifar_binary(path, "public_ranges")


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_images_are_read(shared_data, name):
    try:
        data = load_dataset(name, str(shared_data), "public_ranges")
        assert (len(data.train), len(data.test)) == (60_000, 10_000)
        assert data.input_shape == (1, 28, 28)
        train, test = torch.bincount(data.train.labels), torch.bincount(data.test.labels)
        if name == "mnist":
            assert train.tolist() == [
                5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
            ]  # fmt: skip
            assert test.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        else:
            assert (train.tolist(), test.tolist()) == ([6000] * 10, [1000] * 10)
        assert (float(data.train.features.min()), float(data.train.features.max())) == (-1.0, 1.0)
        assert (
            data.train.labels[:5].tolist()
            == [[5, 0, 4, 1, 9], [9, 0, 0, 3, 0]][name == "fashion_mnist"]
        )
    finally:
        load_dataset.cache_clear()


def test_another_file_in_the_place_of_the_published_one_is_refused(tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(_GOOD))
    with pytest.raises(ChecksumMismatch):
        load_dataset("mnist", str(tmp_path), "public_ranges")
