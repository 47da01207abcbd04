"""Contract test: a message's large arrays can be taken out of it, and put back."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict

from lepton_common.arrays import pack, unpack
from lepton_common.flower.lifting import lift, put_back
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.wire import from_wire, to_wire

LARGE = np.arange(40_000, dtype=np.float32)


@pytest.fixture
def message(speaking):
    model = {
        "packed": pack(LARGE),
        "small": pack(LARGE[:3]),
        "plain": Array(LARGE.reshape(200, -1)),
    }
    content = RecordDict(
        {
            "request": ConfigRecord({"text": "as sent"}),
            "model": ArrayRecord(model),
            "few": ArrayRecord({"small": pack(LARGE[:2])}),
        }
    )
    message = Message(content, dst_node_id=2, message_type="train", ttl=30.0)
    assign_message_id(message, "message-7")
    return message


def test_what_is_lifted_out_is_put_back_after_the_wire(message):
    whole = to_wire(message)
    lean, lifted = lift(message)
    assert to_wire(message) == whole, "the sender's own message has changed"
    assert len(to_wire(lean)) < 2000
    assert {key: [name for name, _ in arrays] for key, arrays in lifted.items()} == {
        "model": ["packed", "plain"]
    }
    again = from_wire(to_wire(lean))
    for key, arrays in lifted.items():
        put_back(again, key, [(name, memoryview(bytes(data))) for name, data in arrays])
    assert list(again.content) == ["request", "model", "few"]
    assert list(again.content["model"]) == ["packed", "small", "plain"]
    assert again.content == message.content
    assert again.metadata == message.metadata
    assert not unpack(again.content["model"]["packed"], len(LARGE)).flags.writeable
    assert isinstance(again.content["model"]["packed"].data, memoryview)
    assert isinstance(again.content["model"]["plain"].data, bytes), "Flower's own are copied"
    assert np.array_equal(again.content["model"]["plain"].numpy(), LARGE.reshape(200, -1))


def test_a_small_message_and_an_error_stay_as_they_are(message):
    small = Message(RecordDict(), dst_node_id=2, message_type="train")
    assert lift(small) == (small, {})
    reply = Message(Error(100, "BudgetSpent"), reply_to=message)
    assert lift(reply) == (reply, {})
