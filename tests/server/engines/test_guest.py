"""Tests of what Flower promises third-party apps, around an engine."""

import logging
import pickle
import sys
import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from lepton_server.engines.guest import GuestApp, GuestGrid
from lepton_server.engines.inprocess import InProcessGrid

_APP = """
import threading
import time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()
gate = threading.Event()


@app.query()
def answer(msg, context):
    if "wait" in msg.content["q"]:
        gate.wait(msg.content["q"]["wait"])
    if "forget" in msg.content["q"]:
        context.state = None
        return Message(RecordDict(), reply_to=msg)
    kept = context.state.setdefault("kept", ConfigRecord({"calls": 0}))
    kept["calls"] += 1
    msg.content["q"]["text"] = "changed at the node"
    return Message(RecordDict({"a": kept}), reply_to=msg)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with an app in one module."""
    (tmp_path / "guest_under_test.py").write_text(_APP)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("guest_under_test", None)


@pytest.fixture
def made(folder):
    """Returns a way to make a grid around an engine of three nodes."""
    engines = []

    def make(**options):
        app = GuestApp("guest_under_test:app", folder, {"x": 1})
        engines.append(InProcessGrid(app, {node: {} for node in (2, 3, 4)}, **options))
        return GuestGrid(engines[-1]), app

    yield make
    for engine in engines:
        engine.close()


def _questions(nodes=(2, 3, 4), **options):
    return [
        Message(RecordDict({"q": ConfigRecord({"text": "as sent"} | options)}), node, "query")
        for node in nodes
    ]


def test_what_an_app_changes_stays_where_it_changed_it(made):
    grid, _ = made()
    content = RecordDict({"q": ConfigRecord({"text": "as sent"})})
    for calls in (1, 2):
        replies = list(grid.send_and_receive([Message(content, n, "query") for n in (2, 3, 4)]))
        assert [reply.content["a"]["calls"] for reply in replies] == [calls] * 3
        for reply in replies:
            reply.content["a"]["calls"] = 100  # the server's own copy
    assert content["q"]["text"] == "as sent"


def test_a_state_that_is_none_is_named_and_the_last_one_stays(made, caplog):
    grid, _ = made()
    list(grid.send_and_receive(_questions((2,))))
    with caplog.at_level(logging.ERROR):
        (reply,) = grid.send_and_receive(_questions((2,), forget=True))
    assert (reply.error.code, reply.error.reason) == (8, "ClientApp stopped responding.")
    assert "ClientApp of node 2 (query) left a NoneType as its state" in caplog.text
    (reply,) = grid.send_and_receive(_questions((2,)))
    assert reply.content["a"]["calls"] == 2


def test_an_app_crosses_to_another_process_by_reference(folder, made):
    grid, app = made()
    app.load()
    again = pickle.loads(pickle.dumps(app))
    sys.modules.pop("guest_under_test")
    assert again.load() is not app.load()
    assert pickle.loads(pickle.dumps(again)).load() is again.load()
    assert len(list(grid.send_and_receive(_questions()))) == 3


def test_an_app_that_cannot_be_loaded_is_flowers_error(folder, speaking, caplog):
    from flwr.app import Context

    context = Context(1, 2, {}, RecordDict(), {})
    (message,) = _questions((2,))
    with caplog.at_level(logging.ERROR):
        reply = GuestApp("guest_not_there:app", folder, {})(message, context)
    assert reply.error.code == 1
    assert reply.error.reason == "An exception was raised when attempting to load `ClientApp`"
    assert "Cannot import 'guest_not_there'" in caplog.text


def test_late_replies_that_nobody_can_ask_for_are_dropped(made):
    grid, app = made(workers=3)
    app.load()
    gate = sys.modules["guest_under_test"].gate
    replies = grid.send_and_receive(_questions(wait=10.0), timeout=0.2)
    assert list(replies) == []
    (exchange,) = grid.traffic.exchanges
    assert (exchange.sent, exchange.answered, exchange.failed) == (3, 0, 3)
    gate.set()
    time.sleep(0.1)
    assert len(list(grid.send_and_receive(_questions()))) == 3
    assert not grid._engine._replies
    assert not grid._arrived
    assert not grid._deadlines
    assert not grid._abandoned


def test_a_reply_past_its_time_is_an_error_also_when_it_came(made):
    grid, _ = made()
    late, in_time = _questions((2, 3))
    late = Message(late.content, 2, "query", ttl=0.2)
    ids = list(grid.push_messages([late, in_time]))
    time.sleep(0.3)
    replies, waiting = [], set(ids)
    while waiting:
        replies += grid.pull_messages(waiting)
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
    by_id = {reply.metadata.reply_to_message_id: reply for reply in replies}
    assert by_id[ids[0]].error.code == 3
    assert by_id[ids[1]].has_content()
    # What was answered once, and what never was, is unknown afterwards, as at a SuperLink.
    assert [r.error.code for r in grid.pull_messages([ids[1], "never"])] == [3, 3]


def test_replies_and_messages_without_a_time_are_not_sent(made):
    grid, _ = made()
    (message,) = _questions((2,))
    (reply,) = grid.send_and_receive([message])
    with pytest.raises(ValueError, match="Invalid message"):
        grid.push_messages([reply])
    other = _questions((2,))[0]
    other.metadata.ttl = 0.0
    with pytest.raises(ValueError, match="Invalid message"):
        grid.push_messages([other])


def test_threads_that_ask_at_once_get_each_its_own_replies(made):
    grid, _ = made(workers=2)
    wrong, asked = [], 20

    def ask(node):
        for _ in range(asked):
            replies = list(grid.send_and_receive(_questions((node,)), timeout=30))
            if [reply.metadata.src_node_id for reply in replies] != [node]:
                wrong.append(replies)

    threads = [threading.Thread(target=ask, args=(node,)) for node in (2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert sum(each.answered for each in grid.traffic.exchanges) == 3 * asked


def test_the_run_is_a_copy(made):
    grid, _ = made()
    grid.run.run_id = 99
    assert grid.run.run_id == 1
    assert {info.node_id for info in grid.get_nodes()} == {2, 3, 4}
