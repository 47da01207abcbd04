"""Contract test: Flower's wire format keeps every record."""

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)

from lepton_common.arrays import pack, unpack
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.wire import context_from_wire, context_to_wire, from_wire, to_wire


@pytest.fixture
def message(speaking):
    vector = np.array([1.5, -0.0, np.inf, np.nan], np.float32)
    content = RecordDict(
        {
            "update": ArrayRecord({"vector": pack(vector), "plain": Array(np.eye(2))}),
            "metrics": MetricRecord({"loss": 0.1, "count": 3, "many": [1.5, 2.5]}),
            "receipt": ConfigRecord({"json": '{"é": 1}', "raw": b"\0\xff", "flag": True}),
        }
    )
    message = Message(content, dst_node_id=2, message_type="train", ttl=30.0)
    assign_message_id(message, "message-7")
    return message


def test_everything_comes_back(message):
    again = from_wire(to_wire(message))
    assert again.content == message.content
    assert again.metadata == message.metadata
    assert again.metadata.message_id == "message-7"
    came = again.content["update"]["vector"]
    assert unpack(came, 4).tobytes() == message.content["update"]["vector"].data


def test_the_same_message_gives_the_same_bytes(message):
    assert isinstance(to_wire(message), bytes)
    assert to_wire(message) == to_wire(message)
    assert to_wire(from_wire(to_wire(message))) == to_wire(message)


def test_an_error_comes_back_with_its_reason(message):
    reply = Message(Error(100, "BudgetSpent"), reply_to=message)
    again = from_wire(to_wire(reply))
    assert again.has_error()
    assert (again.error.code, again.error.reason) == (100, "BudgetSpent")
    assert again.metadata.reply_to_message_id == "message-7"
    assert again.metadata.src_node_id == 2


def test_a_context_comes_back_with_its_state(message):
    context = Context(
        run_id=1, node_id=2, node_config={"site": "a", "share": 0.5, "number": 3, "good": True},
        state=message.content, run_config={"rounds": 4},
    )  # fmt: skip
    assert context_from_wire(context_to_wire(context)) == context
