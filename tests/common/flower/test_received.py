"""What comes in Flower's pieces is read as a message, or refused under one name."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

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


def spoil_body(pieces, name):
    head, _, body = pieces[name].partition(b"\0")
    return {**pieces, name: head + b"\0" + b"\xff" * len(body)}


def spoil_head(pieces, name):
    return {**pieces, name: b"NoSuchThing " + pieces[name]}


def lose_a_part(pieces, name):
    return {part: data for part, data in pieces.items() if part in (name, next(iter(pieces)))}


def another_thing(pieces, name):
    record = next(data for data in pieces.values() if data.startswith(b"ConfigRecord"))
    return {**pieces, name: record}


@pytest.mark.parametrize("fault", [spoil_body, spoil_head, lose_a_part, another_thing])
def test_what_is_no_message_has_one_name(pieces, fault):
    name = list(pieces)[-1]
    changed = fault(pieces, name)
    with pytest.raises(MalformedMessage):
        inflate_message(name, dict(changed))
