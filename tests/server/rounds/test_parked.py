"""A large model waits in a file, and is the same, to the last bit."""

import mmap
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lepton_server.rounds import loop, parked, plain_round
from lepton_server.rounds.exact_mean import ExactMean
from lepton_server.rounds.parked import park, rest, zeros


def resident(vector):
    """Bytes of a vector's pages that are in this process's memory."""
    start, inside, found = vector.ctypes.data, False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        word = line.split()[0]
        if "-" in word and not word.endswith(":"):
            first, last = (int(part, 16) for part in word.split("-"))
            inside = first <= start < last
        elif inside and word == "Rss:":
            found += int(line.split()[1]) << 10
    return found


@pytest.fixture
def any_size(monkeypatch):
    monkeypatch.setattr(parked, "LARGE", 1)
    monkeypatch.setattr(plain_round, "LARGE", 1)


def test_what_is_parked_is_the_same_and_takes_no_memory_while_it_rests(tmp_path, any_size):
    vector = np.random.default_rng(1).standard_normal(1 << 20).astype(np.float32)
    kept = park(vector, tmp_path)
    assert kept is not vector
    assert list(tmp_path.iterdir()) == []
    for _ in range(2):
        assert kept.tobytes() == vector.tobytes()
        assert resident(kept) >= vector.nbytes
        rest(kept)
        assert resident(kept) < vector.nbytes / 8
    assert np.array_equal(kept, vector)
    assert kept.flags.writeable  # PyTorch takes no others without a warning


def test_small_vectors_and_those_for_which_there_is_no_room_stay(tmp_path, monkeypatch):
    vector = np.ones(4, np.float32)
    assert park(vector, tmp_path) is vector
    rest(vector)
    monkeypatch.setattr(parked, "LARGE", 1)

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    assert park(vector, tmp_path) is vector
    assert np.array_equal(vector, np.ones(4))


def test_a_sum_in_a_file_is_the_same_and_takes_no_memory_between_updates(tmp_path, any_size):
    updates = np.random.default_rng(2).standard_normal((3, 1 << 20)).astype(np.float32)
    weights = {"a": 3, "b": 5, "c": 1}
    inside, outside = (ExactMean(1 << 20, weights, False, folder) for folder in (None, tmp_path))
    for site, update in zip(weights, updates, strict=True):
        inside.add(site, update)
        outside.add(site, update)
        # A control of the measure: an array's first pages may count to what lies before it.
        assert resident(inside._sum) > 4 << 20
        assert resident(outside._sum) < 1 << 20
    assert outside.value().tobytes() == inside.value().tobytes()
    assert resident(outside._sum) < 1 << 20


def test_a_sum_for_which_the_disk_has_no_room_is_in_memory(tmp_path, any_size, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    total = zeros(1 << 20, tmp_path)
    assert total.base is None
    assert not total.any()


@pytest.mark.parametrize("changes", [{"secagg.mode": "none"}, {}], ids=["plain", "secure"])
def test_a_run_that_parks_its_model_ends_in_the_same_one(simulate, changes, monkeypatch):
    changes = {**changes, "rounds": 1}
    expected = simulate("in-memory", changes)
    seen = []
    monkeypatch.setattr(parked, "LARGE", 1)
    monkeypatch.setattr(plain_round, "LARGE", 1)
    monkeypatch.setattr(loop, "park", lambda *words: seen.append(park(*words)) or seen[-1])
    assert simulate("parked", changes).tobytes() == expected.tobytes()
    assert len(seen) > 1
    assert all(isinstance(vector.base.obj, mmap.mmap) for vector in seen)
