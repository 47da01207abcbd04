"""Tests of what the messages of a run tell of its rounds."""

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from lepton_server.engines import traffic
from lepton_server.engines.traffic import Traffic


@pytest.fixture
def clock(monkeypatch, speaking):
    """A clock that stands still until it is told the time."""
    now = [0.0]
    monkeypatch.setattr(traffic.time, "monotonic", lambda: now[0])
    return lambda value: now.__setitem__(0, value)


def _message(round_=None, type_="train", group=None):
    config = ConfigRecord({"server-round": round_} if round_ else {"lr": 0.1})
    return Message(RecordDict({"config": config}), 2, type_, group_id=group)


def _rows(counted):
    return [(e.round, e.type, e.sent, e.answered, e.failed, e.seconds) for e in counted.exchanges]


def test_time_is_counted_while_a_message_of_the_round_is_under_way(clock):
    counted = Traffic()
    clock(1.0)
    counted.sent(["a", "b"], [_message(1), _message(1)])
    clock(3.0)
    counted.answered("a", failed=False)
    clock(4.0)
    assert _rows(counted) == [(1, "train", 2, 1, 0, 3.0)]
    counted.answered("b", failed=True)
    clock(10.0)
    counted.sent(["c"], [_message(1)])
    clock(10.5)
    counted.answered("c", failed=False)
    counted.answered("c", failed=False)  # told once
    counted.answered("never sent", failed=False)
    clock(99.0)
    assert _rows(counted) == [(1, "train", 3, 2, 1, 3.5)]


def test_rounds_are_told_by_config_or_group_and_kept_apart_by_type(clock):
    counted = Traffic()
    messages = [_message(1), _message(1, "evaluate"), _message(2), _message(group="2")]
    counted.sent(["a", "b", "c", "d"], messages)
    assert [row[:3] for row in _rows(counted)] == [
        (1, "train", 1), (1, "evaluate", 1), (2, "train", 2),
    ]  # fmt: skip


def test_messages_that_name_no_round_are_one_exchange_until_all_are_answered(clock):
    counted = Traffic()
    counted.sent(["a", "b"], [_message(), _message(group="not a number")])
    counted.sent(["c"], [_message()])
    for name in "abc":
        counted.answered(name, failed=False)
    counted.sent(["d"], [_message()])
    assert [row[:4] for row in _rows(counted)] == [(None, "train", 3, 3), (None, "train", 1, 0)]
