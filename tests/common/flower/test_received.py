"""What comes in Flower's pieces is read as a message, or refused under one name."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from lepton_common.errors import MalformedMessage
from lepton_common.flower.fleet import inflate_message


@pytest.fixture
def pieces(speaking):
    """The objects of a message, by their ids; the message's own is the last."""
    content = RecordDict(
        {
            "model": ArrayRecord({"vector": Array(np.arange(3, dtype=np.float32))}),
            "request": ConfigRecord({"json": "{}"}),
        }
    )
    message = Message(content, dst_node_id=2, message_type="train")
    return {name: piece.deflate() for name, piece in get_all_nested_objects(message).items()}


def test_a_message_is_read_and_has_its_id(pieces):
    name = list(pieces)[-1]
    message = inflate_message(name, dict(pieces))
    assert message.metadata.message_id == name
    assert message.content["request"]["json"] == "{}"
    assert message.content["model"]


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [0.0] * 5, []])
def test_arrays_are_what_they_are_in_flower_s_own_reading(speaking, monkeypatch, values):
    monkeypatch.setattr("flwr.app.message.array.MAX_ARRAY_CHUNK_SIZE", 8)  # bytes
    array = Array(np.array(values, dtype=np.float32))
    content = RecordDict({"model": ArrayRecord({"one": array, "same": array})})
    message = Message(content, dst_node_id=2, message_type="train")
    pieces = {name: piece.deflate() for name, piece in get_all_nested_objects(message).items()}
    name = list(pieces)[-1]
    theirs = inflate_object_from_contents(name, dict(pieces)).content["model"]
    ours = inflate_message(name, pieces).content["model"]
    assert ours.object_id == theirs.object_id
    assert ours["same"].numpy().tolist() == values


def spoil_body(pieces, name):
    head, _, body = pieces[name].partition(b"\0")
    return {**pieces, name: head + b"\0" + b"\xff" * len(body)}


def spoil_head(pieces, name):
    return {**pieces, name: b"NoSuchThing " + pieces[name]}


def lose_a_part(pieces, name):
    return {part: data for part, data in pieces.items() if part in (name, next(iter(pieces)))}


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


def another_thing(pieces, name):
    record = next(data for data in pieces.values() if data.startswith(b"ConfigRecord"))
    return {**pieces, name: record}


@pytest.mark.parametrize(
    "fault", [spoil_body, spoil_head, lose_a_part, shorten_an_array, another_child, another_thing]
)
def test_what_is_no_message_has_one_name(pieces, fault):
    name = list(pieces)[-1]
    changed = fault(pieces, name)
    with pytest.raises(MalformedMessage):
        inflate_message(name, dict(changed))
