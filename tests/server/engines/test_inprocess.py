"""Tests of the in-process Grid."""

import threading
import time
from collections.abc import Mapping
from typing import ClassVar

import pytest
import torch
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from lepton_common.errors import DiskFull
from lepton_common.flower.run import empty_run
from lepton_server.engines.inprocess import InProcessGrid


@pytest.fixture
def grid():
    grids = []

    def build(app, nodes=None, **options):
        grids.append(InProcessGrid(app, nodes or {node: {} for node in (2, 3, 4)}, **options))
        return grids[-1]

    yield build
    for each in grids:
        each.close()


def _echo(message, context):
    content = RecordDict({"who": ConfigRecord({"node": context.node_id})})
    return Message(content, reply_to=message)


def _messages(grid, nodes=(2, 3, 4)):
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


def _who(replies):
    return sorted(reply.content["who"]["node"] for reply in replies)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_all_nodes_answer_whatever_the_number_of_workers(grid, workers):
    made = grid(_echo, workers=workers)
    assert _who(made.send_and_receive(_messages(made), timeout=10)) == [2, 3, 4]
    assert list(made.get_node_ids()) == [2, 3, 4]


def test_a_real_client_app_answers_with_its_own_state_and_configuration(grid):
    app = ClientApp()

    @app.train()
    def train(message, context):
        seen = int(context.state.config_records.get("seen", {"times": 0})["times"]) + 1
        context.state["seen"] = ConfigRecord({"times": seen})
        facts = {"site": context.node_config["site"], "seen": seen, "node": context.node_id}
        return Message(RecordDict({"who": ConfigRecord(facts)}), reply_to=message)

    made = grid(app, {2: {"site": "a"}, 3: {"site": "b"}})
    for times in (1, 2):
        replies = list(made.send_and_receive(_messages(made, (2, 3)), timeout=10))
        facts = {reply.content["who"]["site"]: reply.content["who"]["seen"] for reply in replies}
        assert facts == {"a": times, "b": times}


class Million(Mapping):
    """A million nodes, of which each is made when it is asked for."""

    made: ClassVar[list[int]] = []

    def __len__(self):
        return 10**6

    def __iter__(self):
        return iter(range(2, 10**6 + 2))

    def __contains__(self, node):
        return 2 <= node < 10**6 + 2

    def __getitem__(self, node):
        self.made.append(node)
        if node == 4:
            raise OSError(5, "Input/output error")
        return {"site": f"site-{node}"}


def test_of_a_million_nodes_those_that_are_asked_are_made_and_nothing_is_kept(grid, caplog):
    nodes = Million()
    made = grid(_echo, nodes)
    assert len(made.get_node_ids()) == 10**6
    assert _who(made.send_and_receive(_messages(made, (3, 999_999)), timeout=10)) == [3, 999_999]
    (failed,) = made.send_and_receive(_messages(made, (4,)), timeout=10)
    assert failed.error.reason == "ClientAppCrashed"
    assert "Node 4 did not answer train." in caplog.text
    assert "OSError: [Errno 5] Input/output error" in caplog.text
    assert _who(made.send_and_receive(_messages(made, (5,)), timeout=10)) == [5]
    assert sorted(nodes.made) == [3, 4, 5, 999_999]
    assert made._states == {}


def test_a_site_that_finds_no_room_ends_what_all_do(grid):
    def app(message, context):
        return Message(Error(100, "DiskFull"), reply_to=message)

    made = grid(app)
    with pytest.raises(DiskFull, match="No room is left on the disk of a simulated site"):
        made.send_and_receive(_messages(made), timeout=10)


def test_a_reply_says_what_it_answers_and_who_it_is_from(grid):
    made = grid(_echo)
    ids = list(made.push_messages(_messages(made)))
    assert len(set(ids)) == 3
    found = {}
    deadline = time.monotonic() + 10
    while len(found) < 3 and time.monotonic() < deadline:
        for reply in made.pull_messages(ids):
            found[reply.metadata.reply_to_message_id] = reply.metadata.src_node_id
    assert found == dict(zip(ids, (2, 3, 4), strict=True))
    assert list(made.pull_messages(ids)) == []


def test_an_unknown_node_is_an_error(grid):
    made = grid(_echo)
    with pytest.raises(ValueError, match="There is no node 9"):
        made.push_messages(_messages(made, (9,)))


def test_sending_gives_up_after_its_timeout(grid):
    gate = threading.Event()

    def app(message, context):
        if context.node_id != 2:
            gate.wait(20)
        return _echo(message, context)

    made = grid(app, workers=3)
    began = time.monotonic()
    replies = list(made.send_and_receive(_messages(made), timeout=0.4))
    assert time.monotonic() - began < 3
    gate.set()
    assert _who(replies) == [2]


def test_a_crashed_app_does_not_end_its_worker(grid):
    def app(message, context):
        if context.node_id == 2:
            raise RuntimeError("the age of patient 17 is 63")
        return _echo(message, context)

    made = grid(app, workers=1)
    replies = list(made.send_and_receive(_messages(made), timeout=10))
    (crashed,) = [reply for reply in replies if reply.has_error()]
    assert (crashed.error.code, crashed.error.reason) == (8, "ClientAppCrashed")
    assert _who(reply for reply in replies if not reply.has_error()) == [3, 4]


def test_closing_drops_what_is_queued_and_ends_the_threads(grid):
    before = set(threading.enumerate())
    begun, release = threading.Event(), threading.Event()
    answered = []

    def app(message, context):
        begun.set()
        release.wait(5)
        answered.append(context.node_id)
        return _echo(message, context)

    made = grid(app, workers=1)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 1
    made.push_messages(_messages(made))
    begun.wait(5)
    threading.Timer(0.2, release.set).start()
    made.close()
    assert not any(thread.is_alive() for thread in mine)
    assert answered == [2]


def test_a_message_that_nobody_waits_for_is_not_worked_on(grid):
    answered = []

    def app(message, context):
        answered.append(context.node_id)
        time.sleep(0.3)
        return _echo(message, context)

    made = grid(app, workers=1)
    late = [Message(RecordDict(), dst_node_id=node, message_type="train", ttl=0.1)
            for node in (2, 3)]  # fmt: skip
    made.push_messages(late)
    assert _who(made.send_and_receive(_messages(made, (4,)), timeout=10)) == [4]
    assert answered == [2, 4]


@pytest.mark.parametrize("threads", [1, 2])
def test_each_worker_keeps_to_its_number_of_tensor_threads(grid, threads):
    seen = []

    def app(message, context):
        seen.append(torch.get_num_threads())
        return _echo(message, context)

    made = grid(app, workers=2, threads_per_site=threads)
    list(made.send_and_receive(_messages(made), timeout=10))
    assert seen == [threads] * 3


def test_messages_belong_to_the_run_that_was_set(grid):
    made = grid(_echo)
    assert made.run.run_id == 1
    made.set_run(empty_run(5))
    assert made.run.run_id == 5
    assert made.create_message(RecordDict(), "train", 2, "group").metadata.run_id == 5
    made.set_run(empty_run(1))
