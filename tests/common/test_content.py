"""A message that was read is let go of as soon as nobody has it any more."""

import gc
import weakref

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from lepton_common.arrays import pack
from lepton_common.content import read_vector, records_of
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.sealed import sign_reply, take_signature
from lepton_common.stages import read_stage


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("kind", [ArrayRecord, ConfigRecord, MetricRecord])
def test_records_are_found_by_kind_and_not_held(no_collector, kind):
    records = {
        "a": ArrayRecord({"vector": pack(np.ones(3, np.float32))}),
        "b": ConfigRecord({"stage": "mask", "spec": b"", "body": b""}),
        "c": MetricRecord({"loss": 1.0}),
    }
    content = RecordDict(records)
    (name,) = records_of(content, kind)
    assert records_of(content, kind)[name] is records[name]
    gone = weakref.ref(content)
    del content
    assert gone() is None


def test_a_signed_update_is_freed_with_the_last_that_has_it(speaking, no_collector):
    key = SigningKey.generate()
    asked = Message(RecordDict(), dst_node_id=2, message_type="train")
    asked.metadata.__dict__["_message_id"] = "asked"
    update = {"update": ArrayRecord({"vector": pack(np.ones(3, np.float32))})}
    reply = Message(RecordDict(update), reply_to=asked)
    sign_reply(reply, key)
    assert take_signature(reply, key.public_hex)
    assert len(read_vector(reply.content, "update").data) == 12
    gone = weakref.ref(reply.content)
    del reply
    assert gone() is None


def test_a_stage_is_read_and_not_held(no_collector):
    fields = ConfigRecord({"stage": "unmask", "spec": b"s", "body": b"b"})
    content = RecordDict({"secagg": fields})
    assert read_stage(content).body == b"b"
    gone = weakref.ref(content)
    del content
    assert gone() is None
