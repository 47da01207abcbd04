"""An answer stays in the outbox until the coordinator has it, also past the end of a process."""

import time

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict

from lepton_client.outbox import OUTBOX_FILE, Outbox
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.parcel import Parcel
from lepton_common.identity.keys import SigningKey


class Node:
    """Takes parcels, or fails in a way."""

    def __init__(self, fault=None):
        self.fault, self.taken = fault, []

    def send(self, parcel):
        contents = {name: parcel.content(name) for name in parcel.names}
        if self.fault is not None:
            raise self.fault
        self.taken.append((parcel.announcement, contents))


def status(code):
    request = httpx.Request("POST", "https://localhost")
    return httpx.HTTPStatusError("", request=request, response=httpx.Response(code))


BROKEN = httpx.ReadError("broken")


@pytest.fixture
def key():
    return SigningKey.generate()


@pytest.fixture
def parcel(speaking):
    asked = Message(RecordDict(), dst_node_id=7, message_type="train", ttl=600.0)
    assign_message_id(asked, "a" * 64)
    values = np.arange(9, dtype=np.float32)
    reply = Message(RecordDict({"update": ArrayRecord({"v": Array(values)})}), reply_to=asked)
    return Parcel.of(reply, 0.1)


def whole(parcel):
    return parcel.announcement, {name: parcel.content(name) for name in parcel.names}


@pytest.mark.parametrize("fault", [BROKEN, ConnectionError(), status(502), status(408)])
def test_an_answer_that_did_not_arrive_is_sent_again_the_same(tmp_path, key, parcel, fault):
    outbox, node = Outbox(tmp_path, key), Node(fault)
    outbox.put(parcel, durable=False)
    for _ in range(2):
        with pytest.raises(type(fault)):
            outbox.send_on(node)
    node.fault = None
    outbox.send_on(node)
    outbox.send_on(node)
    assert node.taken == [whole(parcel)]
    assert not (tmp_path / OUTBOX_FILE).exists()


def test_an_answer_that_cannot_be_made_again_outlives_the_process(tmp_path, key, parcel):
    outbox = Outbox(tmp_path, key)
    outbox.put(parcel, durable=True)
    with pytest.raises(httpx.ReadError):
        outbox.send_on(Node(BROKEN))
    path, node = tmp_path / OUTBOX_FILE, Node()
    assert path.stat().st_mode & 0o777 == 0o600
    assert np.arange(9, dtype=np.float32).tobytes() not in path.read_bytes()
    Outbox(tmp_path, key).send_on(node)
    assert node.taken == [whole(parcel)]
    assert not path.exists()
    Outbox(tmp_path, key).send_on(node)
    assert len(node.taken) == 1


@pytest.mark.parametrize("code", [400, 401, 404])
def test_an_answer_that_is_not_wanted_any_more_is_given_up(tmp_path, key, parcel, code, caplog):
    outbox, node = Outbox(tmp_path, key), Node(status(code))
    outbox.put(parcel, durable=True)
    outbox.send_on(node)
    assert f"HTTP {code}" in caplog.text
    node.fault = None
    outbox.send_on(node)
    assert node.taken == []
    assert not (tmp_path / OUTBOX_FILE).exists()


def test_an_answer_whose_time_is_up_is_given_up(tmp_path, key, parcel, caplog, monkeypatch):
    Outbox(tmp_path, key).put(parcel, durable=True)
    node = Node()
    monkeypatch.setattr(time, "time", lambda: parcel.until)
    Outbox(tmp_path, key).send_on(node)
    assert "its time was up" in caplog.text
    assert node.taken == []
    assert not (tmp_path / OUTBOX_FILE).exists()


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _cut_between_pieces(path):
    data, at = path.read_bytes(), 0
    while at < len(data):
        last, at = at, at + 8 + int.from_bytes(data[at : at + 8], "big")
    path.write_bytes(data[:last])


def _flip_head(path):
    data = bytearray(path.read_bytes())
    data[30] ^= 1
    path.write_bytes(data)


def _flip_last(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _say_a_length(length):
    def spoil(path):
        path.write_bytes(length.to_bytes(8, "big") + path.read_bytes()[8:])

    return spoil


def _empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize(
    "spoil", [_cut, _cut_between_pieces, _flip_head, _flip_last, _empty,
              _say_a_length(1 << 40), _say_a_length((1 << 64) - 1)]
)  # fmt: skip
def test_a_file_that_was_torn_or_altered_is_given_up(tmp_path, key, parcel, spoil, caplog):
    Outbox(tmp_path, key).put(parcel, durable=True)
    spoil(tmp_path / OUTBOX_FILE)
    node = Node()
    Outbox(tmp_path, key).send_on(node)
    assert node.taken == []
    assert "does not open" in caplog.text
    assert not (tmp_path / OUTBOX_FILE).exists()


def test_another_key_opens_nothing(tmp_path, key, parcel):
    Outbox(tmp_path, key).put(parcel, durable=True)
    node = Node()
    Outbox(tmp_path, SigningKey.generate()).send_on(node)
    assert node.taken == []


def test_a_full_disk_keeps_the_answer_in_memory(tmp_path, key, parcel, caplog, monkeypatch):
    outbox, node = Outbox(tmp_path, key), Node()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(outbox, "_seal", full)
    outbox.put(parcel, durable=True)
    assert "in memory only" in caplog.text
    assert not (tmp_path / OUTBOX_FILE).exists()
    outbox.send_on(node)
    assert node.taken == [whole(parcel)]
