"""Replies come one by one, and one that was never sent whole is an error."""

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from lepton_common.flower import received
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.run import empty_run
from lepton_common.flower.sparing_grid import LOST, SparingGrid
from lepton_common.flower.task_identity import speak_for


class Runtime:
    """The runtime API of a SuperLink that holds some replies."""

    def __init__(self, replies):
        self.contents, self.pulled, self.confirmed = {}, [], []
        announced, trees = [], []
        for reply in replies:
            objects = get_all_nested_objects(reply)
            self.contents |= {key: value.deflate() for key, value in objects.items()}
            assign_message_id(reply, reply.object_id)
            announced.append(message_to_proto(remove_content_from_message(reply)))
            trees.append(get_object_tree(reply))
        self.response = PullAppMessagesResponse(messages_list=announced, message_object_trees=trees)

    def PullMessages(self, request):
        return self.response

    def PullObject(self, request):
        self.pulled.append(request.object_id)
        content = self.contents.get(request.object_id, b"")
        return SimpleNamespace(
            object_found=True, object_available=bool(content), object_content=content
        )

    def ConfirmMessageReceived(self, request):
        self.confirmed.append(request.message_object_id)


@pytest.fixture
def replies():
    speak_for(7, 1)
    made = []
    for node in (2, 3):
        asked = Message(RecordDict(), dst_node_id=node, message_type="train")
        assign_message_id(asked, f"asked-{node}")
        made.append(Message(RecordDict({"n": ConfigRecord({"n": node})}), reply_to=asked))
    return made


@pytest.fixture
def grid(replies):
    made = SparingGrid(token="t")
    made.set_run(empty_run(7))
    made._client = Runtime(replies)
    return made


def test_no_reply_is_pulled_before_the_last_was_dealt_with(grid):
    runtime, coming = grid._client, grid.pull_messages(["asked-2", "asked-3"])
    first = next(coming)
    assert first.content["n"]["n"] == 2
    assert first.metadata.reply_to_message_id == "asked-2"
    before = len(runtime.pulled)
    assert len(runtime.confirmed) == 1
    (second,) = coming
    assert second.content["n"]["n"] == 3
    assert len(runtime.pulled) == 2 * before
    assert len(runtime.confirmed) == 2


def test_a_reply_that_never_comes_whole_is_an_error_of_that_name(grid, monkeypatch):
    monkeypatch.setattr(received, "_TRIES", 1)
    first, second = grid._client.response.message_object_trees
    del grid._client.contents[first.object_id]
    lost, whole = grid.pull_messages(["asked-2", "asked-3"])
    assert lost.error.reason == LOST
    assert lost.metadata.reply_to_message_id == "asked-2"
    assert whole.content["n"]["n"] == 3
    assert grid._client.confirmed == [first.object_id, second.object_id]


def test_garbage_of_one_site_is_an_error_and_the_others_replies_come(grid):
    first, _ = grid._client.response.message_object_trees
    grid._client.contents[first.object_id] = b"NoSuchThing 4\0body"
    lost, whole = grid.pull_messages(["asked-2", "asked-3"])
    assert lost.error.reason == LOST
    assert whole.content["n"]["n"] == 3


def test_a_reply_may_be_some_times_as_large_as_what_was_asked_and_no_larger(grid, monkeypatch):
    monkeypatch.setattr(SparingGrid, "_most", 1 << 10)
    monkeypatch.setattr("flwr.superlink.grid.HttpGrid.push_messages", lambda _, messages: messages)

    def asked(values):
        record = ArrayRecord({"vector": Array(np.zeros(values, np.float32))})
        return Message(RecordDict({"model": record}), dst_node_id=2, message_type="train")

    question = asked(0)
    assign_message_id(question, "asked-2")
    grid._client = Runtime([Message(asked(2000).content, reply_to=question)])
    (lost,) = grid.pull_messages(["asked-2"])
    assert lost.error.reason == LOST
    grid.push_messages([asked(1000)])
    (whole,) = grid.pull_messages(["asked-2"])
    assert len(whole.content["model"]["vector"].data) > 8000


def test_flower_s_own_way_to_wait_which_would_ask_for_ever_is_closed(grid):
    with pytest.raises(NotImplementedError):
        grid.send_and_receive([], timeout=0.0)
