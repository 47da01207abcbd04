"""What comes in Flower's pieces is read as a message, or refused under one name."""

import tracemalloc

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from lepton_common.errors import MalformedMessage
from lepton_common.flower.received import pull_message


@pytest.fixture
def message(speaking):
    content = RecordDict(
        {
            "model": ArrayRecord({"vector": Array(np.arange(3, dtype=np.float32))}),
            "request": ConfigRecord({"json": "{}"}),
        }
    )
    return Message(content, dst_node_id=2, message_type="train")


def pieces_of(message):
    """The objects of a message, by their ids; the message's own is the last."""
    return {name: piece.deflate() for name, piece in get_all_nested_objects(message).items()}


def read(message, pieces):
    return pull_message(message.object_id, get_object_tree(message), pieces.__getitem__)


def test_a_message_is_read_and_has_its_id(message):
    found = read(message, pieces_of(message))
    assert found.metadata.message_id == message.object_id
    assert found.content["request"]["json"] == "{}"
    assert found.content["model"]["vector"].numpy().tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.0] * 50, [], [0.0, 1.0] * 9])
def test_arrays_are_what_they_are_in_flower_s_own_reading(speaking, monkeypatch, values):
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 8)  # bytes
    array = Array(np.array(values, dtype=np.float32))
    content = RecordDict({"model": ArrayRecord({"one": array, "same": array})})
    message = Message(content, dst_node_id=2, message_type="train")
    pieces = pieces_of(message)
    theirs = inflate_object_from_contents(message.object_id, dict(pieces)).content["model"]
    ours = read(message, pieces).content["model"]
    assert ours.object_id == theirs.object_id
    assert ours["same"].data == theirs["same"].data
    assert ours["same"].numpy().tolist() == values


def test_an_array_is_in_memory_once_while_its_pieces_come(speaking, monkeypatch):
    monkeypatch.setattr("flwr.app.message.array.FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE", 1 << 20)
    vector = np.random.default_rng(1).standard_normal(1 << 22, np.float32)
    content = RecordDict({"model": ArrayRecord({"vector": Array(vector)})})
    message = Message(content, dst_node_id=2, message_type="train")
    pieces, pulled = pieces_of(message), []

    def pull(name):
        pulled.append(len(pieces[name]))
        return bytearray(pieces[name])  # as what comes over a network: its own memory

    tracemalloc.start()
    try:
        found = pull_message(message.object_id, get_object_tree(message), pull)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(pulled) > vector.nbytes
    assert most < vector.nbytes + (5 << 20)
    np.testing.assert_array_equal(found.content["model"]["vector"].numpy(), vector)


@pytest.mark.parametrize("kind", ["Message", "ConfigRecord", "ArrayChunk"])
def test_a_line_that_breaks_is_no_fault_of_the_message(message, kind):
    pieces = pieces_of(message)

    def pull(name):
        if pieces[name].startswith(kind.encode()):
            raise httpx.ReadError("broken")
        return pieces[name]

    with pytest.raises(httpx.ReadError):
        pull_message(message.object_id, get_object_tree(message), pull)


def spoil_body(pieces, name):
    head, _, body = pieces[name].partition(b"\0")
    return {**pieces, name: head + b"\0" + b"\xff" * len(body)}


def spoil_head(pieces, name):
    return {**pieces, name: b"NoSuchThing " + pieces[name]}


def shorten_an_array(pieces, name):
    return {
        part: data[:-1] if b"ArrayChunk" in data[:10] else data for part, data in pieces.items()
    }


def another_child(pieces, name):
    """The array is said to be made of the array's own description."""
    array = next(part for part, data in pieces.items() if data.startswith(b"Array "))
    head, _, body = pieces[array].partition(b"\0")
    kind, _, length = head.split(b" ")
    return {**pieces, array: b" ".join([kind, array.encode(), length]) + b"\0" + body}


def unannounced_child(pieces, name):
    array = next(part for part, data in pieces.items() if data.startswith(b"Array "))
    head, _, body = pieces[array].partition(b"\0")
    kind, _, length = head.split(b" ")
    return {**pieces, array: b" ".join([kind, b"0" * 64, length]) + b"\0" + body}


def endless_array(pieces, name):
    return {part: data.replace(b"[3]", b"[1000000000000000000]") for part, data in pieces.items()}


def without_end(pieces, name):
    """One piece is said to come again and again."""
    again = ", ".join(["0"] * 2000)
    return {part: again_in(data, f"[{again}]") for part, data in pieces.items()}


def again_in(data, order):
    if not data.startswith(b"Array "):
        return data
    head, _, body = data.partition(b"\0")
    kind, child, _ = head.split(b" ")
    body = body.replace(b'"arraychunk_ids": [0]', f'"arraychunk_ids": {order}'.encode())
    return b" ".join([kind, child, str(len(body)).encode()]) + b"\0" + body


def nothing_without_end(pieces, name):
    again = ", ".join(["0"] * 2000)
    return {
        part: b"ArrayChunk  0\0" if b"ArrayChunk" in data[:10] else again_in(data, f"[{again}]")
        for part, data in pieces.items()
    }


def another_thing(pieces, name):
    record = next(data for data in pieces.values() if data.startswith(b"ConfigRecord"))
    return {**pieces, name: record}


@pytest.mark.parametrize(
    "fault",
    [
        spoil_body,
        spoil_head,
        shorten_an_array,
        another_child,
        unannounced_child,
        endless_array,
        without_end,
        nothing_without_end,
        another_thing,
    ],
)
def test_what_is_no_message_has_one_name(message, fault):
    changed = fault(pieces_of(message), message.object_id)
    with pytest.raises(MalformedMessage):
        read(message, changed)
