"""Tests of the Grid with Flower's wire format in between."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from lepton_common.arrays import pack, unpack
from lepton_common.flower.wire import from_wire
from lepton_server.engines.serialising import SerialisingGrid
from lepton_server.rounds.collect import collect


def _app(message, context):
    message.content["request"]["text"] = "changed at the site"
    update = pack(np.full(3, context.node_id, np.float32))
    return Message(RecordDict({"update": ArrayRecord({"vector": update})}), reply_to=message)


def test_replies_cross_as_bytes_that_say_the_same():
    grid = SerialisingGrid(_app, {2: {}, 3: {}}, workers=2)
    content = RecordDict({"request": ConfigRecord({"text": "as sent"})})
    answers = dict(collect(grid, {2: content, 3: content}, "train", 10.0))
    grid.close()
    for node in (2, 3):
        assert unpack(answers[node]["update"]["vector"], 3).tolist() == [node] * 3
    left = {message.metadata.src_node_id: message for message in map(from_wire, grid.left_sites)}
    assert len(grid.left_sites) == 2
    assert {node: message.content for node, message in left.items()} == answers
    assert all(isinstance(sent, bytes) for sent in grid.left_sites)
    assert content["request"]["text"] == "as sent", "a site changed the server's own object"


def test_a_crash_is_named_and_leaves_no_text_on_the_wire():
    def app(message, context):
        raise ValueError("the age of patient 17 is 63")

    grid = SerialisingGrid(app, {2: {}})
    assert list(collect(grid, {2: RecordDict()}, "train", 10.0)) == [(2, "ClientAppCrashed")]
    grid.close()
    assert not any(b"patient" in sent for sent in grid.left_sites)
