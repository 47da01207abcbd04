"""Tests that a checkpoint is read back exactly or not at all."""

import json

import numpy as np
import pytest
from safetensors.numpy import save

from lepton_common.arrays import Layout
from lepton_common.errors import CheckpointUnreadable
from lepton_server.rounds.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

_LAYOUT = Layout(("weight", "bias"), ((2, 3), (2,)))


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    history = [{"round": 37, "metrics": {"accuracy": 0.875}, "failed": {"site-1": "TimedOut"}}]
    return Checkpoint(
        round=37,
        model=rng.standard_normal(8).astype(np.float32),
        history=history,
        strategy={"m_t": rng.standard_normal(8).astype(np.float32), "v_t": rng.random(8)},
    )


@pytest.fixture
def path(tmp_path, state):
    save_checkpoint(tmp_path / "checkpoint", state)
    return tmp_path / "checkpoint"


def _content(state):
    arrays = {"model": state.model, **state.strategy}
    return (
        state.round,
        json.dumps(state.history),
        {name: (value.dtype, value.shape, value.tobytes()) for name, value in arrays.items()},
    )


def _check(path, data, state):
    """The damaged file must be refused, or say exactly the same."""
    path.write_bytes(data)
    try:
        again = load_checkpoint(path, _LAYOUT)
    except CheckpointUnreadable:
        return
    assert _content(again) == _content(state)


def test_a_checkpoint_is_read_back_to_the_bit(path, state):
    assert _content(load_checkpoint(path, _LAYOUT)) == _content(state)
    save_checkpoint(path, Checkpoint(round=0, model=state.model))
    again = load_checkpoint(path, _LAYOUT)
    assert (again.round, again.history, again.strategy) == (0, [], {})


def test_a_cut_checkpoint_is_refused(path):
    data = path.read_bytes()
    for stop in range(len(data)):
        path.write_bytes(data[:stop])
        with pytest.raises(CheckpointUnreadable, match="start a new run"):
            load_checkpoint(path, _LAYOUT)


def test_a_longer_checkpoint_is_refused(path):
    data = path.read_bytes()
    path.write_bytes(data + b"\0")
    with pytest.raises(CheckpointUnreadable):
        load_checkpoint(path, _LAYOUT)


def test_no_changed_byte_of_the_data_passes(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(CheckpointUnreadable):
            load_checkpoint(path, _LAYOUT)


@pytest.mark.parametrize("flip", [0x01, 0x04, 0x10, 0x80])
def test_no_changed_byte_anywhere_changes_what_is_read(path, state, flip):
    data = path.read_bytes()
    places = np.random.default_rng(flip).choice(len(data), 200, replace=False)
    for place in sorted(places):
        _check(path, data[:place] + bytes([data[place] ^ flip]) + data[place + 1 :], state)


def test_a_changed_round_is_refused(path, state):
    data = path.read_bytes()
    assert data.count(b'"round":"37"') == 1
    _check(path, data.replace(b'"round":"37"', b'"round":"27"'), state)


def test_a_changed_history_is_refused(path, state):
    data = path.read_bytes()
    assert data.count(b"0.875") == 1
    _check(path, data.replace(b"0.875", b"0.975"), state)


@pytest.mark.parametrize("size", [(2, 2), (2, 4), (1,)])
def test_a_checkpoint_of_another_model_is_refused(path, size):
    with pytest.raises(CheckpointUnreadable, match="of another model"):
        load_checkpoint(path, Layout(("weight", "bias"), (size, (2,))))


@pytest.mark.parametrize("facts", [None, {}, {"format": "lepton-checkpoint-0"}, {"round": "1"}])
def test_another_safetensors_file_is_refused(path, state, facts):
    path.write_bytes(save({"model": state.model}, facts))
    with pytest.raises(CheckpointUnreadable):
        load_checkpoint(path, _LAYOUT)


def test_a_missing_checkpoint_is_unreadable(tmp_path):
    with pytest.raises(CheckpointUnreadable):
        load_checkpoint(tmp_path / "missing", _LAYOUT)
