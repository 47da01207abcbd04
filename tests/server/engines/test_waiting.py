"""Tests of who is given which message."""

import threading

import pytest

from lepton_server.engines.waiting import Waiting


def _take(waiting, worker):
    turn = waiting.take(worker)
    return turn.node, turn.number, turn.asked


def _begun(waiting, worker):
    """A thread that waits for a message, and what it is given."""
    given = []
    thread = threading.Thread(target=lambda: given.append(waiting.take(worker)), daemon=True)
    thread.start()
    return thread, given


def test_messages_are_handed_out_in_their_order_and_counted_by_node():
    waiting = Waiting(keep=True)
    waiting.put([(2, "a"), (3, "b"), (2, "c")])
    found = []
    for _ in range(3):
        found.append(_take(waiting, 0))
        waiting.done(0)
    assert sorted(found) == [(2, 1, "a"), (2, 2, "c"), (3, 1, "b")]
    assert [node for node, _, _ in found if node == 2] == [2, 2]


def test_nodes_stay_with_the_worker_that_served_them():
    waiting = Waiting(keep=True)
    for node, worker in ((2, 0), (3, 1), (4, 1), (5, 0)):
        waiting.put([(node, "first")])
        assert waiting.take(worker).node == node
        waiting.done(worker)
    waiting.put([(node, "again") for node in (2, 3, 4, 5)])
    assert [_take(waiting, 1)[0], waiting.done(1), _take(waiting, 1)[0]] == [3, None, 4]
    assert [_take(waiting, 0)[0], waiting.done(0), _take(waiting, 0)[0]] == [2, None, 5]


def test_an_idle_worker_takes_over_from_a_busy_one_and_only_from_it():
    waiting = Waiting(keep=True)
    for node in (2, 3, 4):
        waiting.put([(node, "first")])
        waiting.take(0)
        waiting.done(0)
    waiting.put([(node, "again") for node in (2, 3, 4)])
    thread, given = _begun(waiting, 1)
    thread.join(0.1)
    assert not given, "worker 0 is as idle"
    assert _take(waiting, 0) == (2, 2, "again")
    thread.join(10)
    assert (given[0].node, given[0].number) == (4, 2), "what worker 0 would come to last"
    waiting.done(1)
    waiting.done(0)
    assert _take(waiting, 0)[0] == 3
    waiting.done(0)
    waiting.put([(4, "once more")])
    assert _take(waiting, 1) == (4, 3, "once more"), "it is the other worker's now"


@pytest.mark.parametrize("keep", [True, False])
def test_a_node_is_served_by_one_worker_at_a_time(keep):
    waiting = Waiting(keep=keep)
    waiting.put([(2, "a"), (2, "b")])
    assert _take(waiting, 0) == (2, 1, "a")
    thread, given = _begun(waiting, 1)
    thread.join(0.1)
    assert not given
    waiting.done(0)
    thread.join(10)
    assert (given[0].number, given[0].asked) == (2, "b")


def test_without_owners_any_worker_serves_any_node_at_once():
    waiting = Waiting(keep=False)
    for worker in (0, 1, 2):
        waiting.put([(2, "message")])
        assert _take(waiting, worker) == (2, worker + 1, "message")
        waiting.done(worker)


def test_closing_wakes_all_and_returns_what_was_left():
    waiting = Waiting(keep=True)
    thread, given = _begun(waiting, 1)
    waiting.put([(2, "a")])
    thread.join(10)
    waiting.put([(2, "b"), (3, "c")])
    idle, nothing = _begun(waiting, 0)
    idle.join(10)
    waiting.done(0)
    idle, nothing = _begun(waiting, 0)
    assert waiting.close() == ["b"]
    idle.join(10)
    assert nothing == [None]
    assert waiting.take(1) is None
    assert given[0].asked == "a"


def test_many_workers_answer_every_message_once():
    waiting, answered, lock = Waiting(keep=True), [], threading.Lock()
    now_served: set[int] = set()

    def work(worker):
        while (turn := waiting.take(worker)) is not None:
            with lock:
                assert turn.node not in now_served
                now_served.add(turn.node)
            with lock:
                now_served.remove(turn.node)
                answered.append((turn.node, turn.number, turn.asked))
            waiting.done(worker)

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(8)]
    for thread in threads:
        thread.start()
    for round_ in range(1, 21):
        waiting.put([(node, round_) for node in range(2, 32)])
    while len(answered) < 600 and any(thread.is_alive() for thread in threads):
        threads[0].join(0.01)
    waiting.close()
    for thread in threads:
        thread.join(10)
    assert sorted(node for node, _, _ in answered) == sorted(list(range(2, 32)) * 20)
    assert {(node, number) for node, number, _ in answered} == {
        (node, number) for node in range(2, 32) for number in range(1, 21)
    }
