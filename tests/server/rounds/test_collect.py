"""Tests of asking and waiting: every node answered for once, whatever it does, in bounded time."""

import threading
import time
from weakref import ref

import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict

from lepton_common.messages import TRAIN
from lepton_server.engines.inprocess import InProcessGrid
from lepton_server.rounds.collect import TIMED_OUT, WRONG_SENDER, collect


def _echo(message, context):
    content = RecordDict({"who": ConfigRecord({"node": context.node_id})})
    return Message(content, reply_to=message)


@pytest.fixture
def grid():
    grids = []

    def build(app, nodes=3, kind=InProcessGrid, **options):
        grids.append(kind(app, {node: {} for node in range(2, 2 + nodes)}, **options))
        return grids[-1]

    yield build
    for each in grids:
        each.close()


def _ask(grid, nodes=None, timeout_s=10.0):
    nodes = list(grid.get_node_ids()) if nodes is None else nodes
    return list(collect(grid, dict.fromkeys(nodes, RecordDict()), "train", timeout_s))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_node_answers_once(grid, workers):
    answers = _ask(grid(_echo, nodes=12, workers=workers))
    assert sorted(node for node, _ in answers) == list(range(2, 14))
    assert all(content["who"]["node"] == node for node, content in answers)


def test_only_the_asked_nodes_are_asked(grid):
    assert [node for node, _ in _ask(grid(_echo), nodes=[3])] == [3]
    assert _ask(grid(_echo), nodes=[]) == []


def test_answers_come_in_order_of_arrival_while_others_still_work(grid):
    gates = {node: threading.Event() for node in (2, 3, 4)}

    def app(message, context):
        assert gates[context.node_id].wait(10)
        return _echo(message, context)

    answers = collect(grid(app, workers=3), dict.fromkeys([2, 3, 4], RecordDict()), "train", 10.0)
    order = []
    for node in (4, 2, 3):
        gates[node].set()
        order.append(next(answers)[0])
    assert order == [4, 2, 3]
    assert list(answers) == []


def test_answers_that_arrive_between_two_looks_come_in_order_of_arrival_too(grid):
    class Late(InProcessGrid):
        def pull_messages(self, message_ids):
            time.sleep(0.2)
            return super().pull_messages(message_ids)

    answers = _ask(grid(_echo, nodes=12, kind=Late, workers=1))
    assert [node for node, _ in answers] == list(range(2, 14))


def test_a_node_that_does_not_answer_is_timed_out_in_bounded_time(grid):
    gate = threading.Event()

    def app(message, context):
        if context.node_id == 3:
            gate.wait(20)
        return _echo(message, context)

    began = time.monotonic()
    answers = dict(_ask(grid(app, workers=3), timeout_s=0.5))
    assert 0.5 <= time.monotonic() - began < 3.0
    gate.set()
    assert answers[3] == TIMED_OUT == "TimedOut"
    assert all(isinstance(answers[node], RecordDict) for node in (2, 4))


def test_an_answer_to_an_earlier_question_is_not_taken_for_this_one(grid):
    gate = threading.Event()

    def app(message, context):
        if not gate.is_set():
            gate.wait(10)
        return _echo(message, context)

    slow = grid(app, nodes=1)
    assert _ask(slow, timeout_s=0.1) == [(2, TIMED_OUT)]
    gate.set()
    ((node, content),) = _ask(slow)
    assert (node, content["who"]["node"]) == (2, 2)


def test_an_app_that_raises_is_named_crashed_and_says_nothing_else(grid):
    def app(message, context):
        if context.node_id == 2:
            raise ValueError("the age of patient 17 is 63")
        return _echo(message, context)

    answers = dict(_ask(grid(app)))
    assert answers[2] == "ClientAppCrashed"
    assert all(isinstance(answers[node], RecordDict) for node in (3, 4))


def test_an_app_that_returns_no_message_counts_as_crashed(grid):
    def app(message, context):
        return None if context.node_id == 2 else _echo(message, context)

    answers = dict(_ask(grid(app)))
    assert answers[2] == "ClientAppCrashed"
    assert all(isinstance(answers[node], RecordDict) for node in (3, 4))


def test_a_named_refusal_is_passed_on_and_anything_but_a_name_is_not(grid):
    reasons = {2: "BudgetSpent", 3: "x" * 1000, 4: "\x1b]0;owned\x07[red]<b>"}

    def app(message, context):
        return Message(Error(100, reasons[context.node_id]), reply_to=message)

    answers = dict(_ask(grid(app)))
    assert answers == {2: "BudgetSpent", 3: "MalformedReply", 4: "MalformedReply"}


def _claiming(sender):
    class Claiming(InProcessGrid):
        def pull_messages(self, message_ids):
            replies = list(super().pull_messages(message_ids))
            for reply in replies:
                if reply.metadata.src_node_id == 3:
                    reply.metadata.__dict__["_src_node_id"] = sender
            return replies

    return Claiming


@pytest.mark.parametrize("sender", [2, 4, 99, 1])
def test_a_reply_in_another_nodes_name_is_refused(grid, sender):
    answers = dict(_ask(grid(_echo, kind=_claiming(sender))))
    assert answers[3] == WRONG_SENDER == "WrongSender"
    assert all(isinstance(answers[node], RecordDict) for node in (2, 4))


def test_a_superlink_may_report_a_lost_node_under_its_own_id(grid):
    def app(message, context):
        return Message(Error(3, "NodeUnavailable"), reply_to=message)

    answers = dict(_ask(grid(app, kind=_claiming(1))))
    assert answers == dict.fromkeys((2, 3, 4), "NodeUnavailable")
    assert dict(_ask(grid(app, kind=_claiming(2))))[3] == WRONG_SENDER


@pytest.mark.parametrize("mode", ["none", "sa1"])
def test_no_answer_is_held_while_the_next_is_awaited(simulate, mode):
    seen, alive = [], []

    class Watched(InProcessGrid):
        def pull_messages(self, message_ids):
            replies = super().pull_messages(message_ids)
            while replies:
                reply = replies.pop(0)
                alive.append(sum(record() is not None for record in seen))
                if reply.metadata.message_type == TRAIN:
                    seen.extend(map(ref, reply.content.values()))
                yield reply
                del reply

    simulate(changes={"secagg.mode": mode, "rounds": 1}, kind=Watched)
    assert len(seen) > 5
    assert not any(alive)
