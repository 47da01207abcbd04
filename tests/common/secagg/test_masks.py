"""Tests of mask streams: known answers, plain CTR, threads, backends, and uniformity."""

import hashlib
import json

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from scipy import stats

from lepton_common.secagg import masks
from lepton_common.secagg.masks import BACKENDS, LANE, add_masks, chosen_backend, keystream

_LENGTHS = [1, 7, 2**18 - 1, 2**18 + 3, LANE - 1, LANE, LANE + 7]
_KEY = bytes(range(32))


def _dtype(width):
    return np.dtype("<u2" if width == 16 else "<u4")


def _plain(key, length, width):
    """The stream by definition: one lane after another, each with its counter block."""
    dtype, parts = _dtype(width), []
    for lane in range(-(-length // LANE)):
        cipher = Cipher(algorithms.AES(key), modes.CTR(lane.to_bytes(12) + b"\0\0\0\2"))
        count = min(LANE, length - lane * LANE)
        parts.append(cipher.encryptor().update(bytes(count * dtype.itemsize)))
    return np.frombuffer(b"".join(parts), dtype)


@pytest.fixture
def known(vectors):
    return json.loads((vectors / "sa1.json").read_text())["mask"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("width", [16, 32])
def test_known_answers(known, width, backend):
    vector = np.zeros(known["elements"], _dtype(width))
    add_masks(vector, [(bytes.fromhex(known["key"]), 1)], width, backend=backend)
    assert hashlib.sha256(vector.tobytes()).hexdigest() == known[f"sha256_{width}"]
    if width == 32:
        assert [f"{word:08x}" for word in vector[:4]] == known["lane_0_words"]
        assert [f"{word:08x}" for word in vector[LANE:]] == known["lane_1_words"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", _LENGTHS)
@pytest.mark.parametrize("width", [16, 20, 24, 32])
def test_adds_and_subtracts_plain_ctr(width, length, backend):
    found = [(_KEY, 1), (bytes(32), -1), (b"\xff" * 32, -1)]
    start = np.arange(length, dtype=_dtype(width))
    vector = start.copy()
    add_masks(vector, found, width, backend=backend)
    expected = start.astype(np.int64)
    for key, sign in found:
        expected += sign * _plain(key, length, width).astype(np.int64)
    np.testing.assert_array_equal(vector, expected & (2**width - 1))


@pytest.mark.parametrize("width", [16, 20, 24, 32])
def test_opposite_signs_cancel(width):
    keys = [bytes([number]) * 32 for number in range(5)]
    vector = np.arange(1000, dtype=_dtype(width))
    add_masks(vector, [(key, 1) for key in keys], width)
    assert not np.array_equal(vector, np.arange(1000))
    add_masks(vector, [(key, -1) for key in keys], width)
    np.testing.assert_array_equal(vector, np.arange(1000))


@pytest.mark.parametrize("lanes", [3, masks._FEW_LANES])
@pytest.mark.parametrize("backend", BACKENDS)
def test_threads_change_nothing(backend, lanes):
    one, several = (np.zeros(lanes * LANE + 5, "<u2") for _ in range(2))
    add_masks(one, [(_KEY, 1), (bytes(32), -1)], 16, threads=1, backend=backend)
    add_masks(several, [(_KEY, 1), (bytes(32), -1)], 16, threads=3, backend=backend)
    np.testing.assert_array_equal(one, several)


def test_no_masks_leave_the_vector_reduced():
    vector = np.array([2**24 + 5, 3], "<u4")
    add_masks(vector, [], 24)
    assert vector.tolist() == [5, 3]


@pytest.mark.parametrize(
    ("vector", "width"),
    [
        (np.zeros(3, "<u4"), 16),
        (np.zeros(3, "<u2"), 32),
        (np.zeros(3, ">u4"), 32),
        (np.zeros(3, "<i4"), 32),
        (np.zeros((3, 2), "<u4"), 32),
    ],
)
def test_refuses_another_type(vector, width):
    with pytest.raises(ValueError, match="should be of type"):
        add_masks(vector, [(_KEY, 1)], width)


def test_a_backend_that_fails_the_self_test_is_never_chosen(monkeypatch):
    assert chosen_backend() in BACKENDS
    real = BACKENDS["ctr"]
    monkeypatch.setitem(BACKENDS, "wrong", lambda key, lane, block: real(key, lane + 1, block))
    monkeypatch.setattr(masks, "_seconds", lambda name: 0.0 if name == "wrong" else 1.0)
    assert masks._calibrate() != "wrong"
    monkeypatch.setitem(BACKENDS, "right", real)
    monkeypatch.setattr(masks, "_seconds", lambda name: 0.1 if name == "right" else 1.0)
    assert masks._calibrate() == "right"


def test_gcm_cannot_begin_inside_a_lane():
    with pytest.raises(ValueError, match="first block"):
        BACKENDS["gcm"](_KEY, 0, 1)


def test_every_byte_value_is_as_frequent():
    counts = np.bincount(keystream(_KEY, 2**20), minlength=256)
    assert 0.001 < stats.chisquare(counts).pvalue < 0.999
    other = np.bincount(keystream(_KEY, 2**20) ^ keystream(bytes(32), 2**20), minlength=256)
    assert 0.001 < stats.chisquare(other).pvalue < 0.999


@pytest.mark.parametrize("width", [20, 24])
def test_reduced_masks_are_uniform(width):
    vector = np.zeros(2**18, "<u4")
    add_masks(vector, [(_KEY, -1)], width)
    assert vector.max() < 2**width
    counts = np.bincount(vector >> (width - 8), minlength=256)
    assert 0.001 < stats.chisquare(counts).pvalue < 0.999
