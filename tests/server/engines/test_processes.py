"""Tests of the Grid of worker processes: what crosses, who serves whom, and what ends when."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from lepton_common.arrays import pack
from lepton_common.errors import WorkerFailed
from lepton_server.engines import worker_process
from lepton_server.engines.processes import ProcessesGrid

NODES = tuple(range(2, 8))


@pytest.fixture(scope="module")
def grid():
    made = ProcessesGrid(
        "engine_app:app",
        {node: {"site": f"site-{node}"} for node in NODES},
        workers=2,
        threads_per_site=2,
        forget="engine_app:forget",
    )
    # Until both have started: a test may look at which does what.
    while len({said["process"] for said in _said(_send(made))}) < 2:
        time.sleep(0.05)
    yield made
    made.close()


def _send(grid, kind="train", nodes=NODES, content=None, timeout=60.0):
    messages = [Message(content or RecordDict(), dst_node_id=n, message_type=kind) for n in nodes]
    return list(grid.send_and_receive(messages, timeout=timeout))


def _said(replies):
    return [reply.content["said"] for reply in replies]


def _asked(path, until="", dies=()):
    record = {"begun": str(path / "begun"), "until": str(until), "dies": list(dies)}
    return RecordDict({"asked": ConfigRecord(record)})


def _alive(process):
    return Path(f"/proc/{process}").exists()


def test_all_nodes_answer_each_with_its_own_state_and_configuration(grid):
    first = {said["node"]: said["seen"] for said in _said(_send(grid))}
    replies = _send(grid)
    assert sorted(first) == list(NODES)
    for reply, said in zip(replies, _said(replies), strict=True):
        assert said["seen"] == first[said["node"]] + 1
        assert said["site"] == f"site-{said['node']}"
        assert (said["threads"], reply.metadata.src_node_id) == (2, said["node"])
        assert said["process"] != os.getpid()


def _is_open(segment):
    try:
        os.fstat(segment.file)
    except OSError:
        return False
    return True


def test_the_same_arrays_are_shared_once_and_changed_ones_come_back(grid, monkeypatch):
    made = []
    monkeypatch.setattr(
        "lepton_server.engines.processes.Segment",
        lambda number, arrays: made.append(Segment(number, arrays)) or made[-1],
    )
    from lepton_server.engines.shared_memory import Segment

    vector = np.arange(100_000, dtype=np.float32)
    plain = np.arange(20_000, dtype=np.float64)
    model = ArrayRecord({"packed": pack(vector), "plain": Array(plain)})
    before = model["packed"].data
    for round_ in (1, 2):
        replies = _send(grid, "query.arrays", content=RecordDict({"model": model}))
        assert len(replies) == len(NODES)
        for reply in replies:
            back, node = reply.content["back"], reply.metadata.src_node_id
            assert np.array_equal(np.frombuffer(back["packed"].data, np.float32), vector + node)
            assert np.array_equal(back["plain"].numpy(), plain + node)
            assert isinstance(back["packed"].data, bytes), "the server may keep it"
            said = reply.content["said"]
            assert (said["writeable"], said["mapped"], said["copied"]) == (
                False, "memoryview", "bytes",
            )  # fmt: skip
        assert len(made) == round_
    assert model["packed"].data is before
    until = time.monotonic() + 10
    while any(map(_is_open, made)):  # a worker lets go just after its last reply
        assert time.monotonic() < until
        time.sleep(0.01)


def test_more_arrays_than_files_go_inside_their_messages(grid, monkeypatch):
    from lepton_server.engines.shared_memory import Segment

    made = []
    monkeypatch.setattr(
        "lepton_server.engines.processes.Segment",
        lambda number, arrays: made.append(Segment(number, arrays)) or made[-1],
    )
    monkeypatch.setattr("lepton_server.engines.processes.MOST_SEGMENTS", 3)
    vector, plain = np.arange(100_000, dtype=np.float32), np.arange(20_000, dtype=np.float64)
    for _ in range(2):  # room that was taken is given back
        made.clear()
        messages = []
        for node in NODES:
            arrays = ArrayRecord({"packed": pack(vector * node), "plain": Array(plain * node)})
            content = RecordDict({"model": arrays})
            messages.append(Message(content, dst_node_id=node, message_type="query.arrays"))
        replies = list(grid.send_and_receive(messages, timeout=60.0))
        assert len(replies) == len(NODES)
        for reply in replies:
            back, node = reply.content["back"], reply.metadata.src_node_id
            expected = vector * node + np.float32(node)
            assert np.array_equal(np.frombuffer(back["packed"].data, np.float32), expected)
            assert np.array_equal(back["plain"].numpy(), plain * node + node)
        assert len(made) == 3
        until = time.monotonic() + 10
        while any(map(_is_open, made)):  # a worker lets go just after its last reply
            assert time.monotonic() < until
            time.sleep(0.01)


def test_an_app_that_raises_or_answers_nothing_counts_as_crashed(grid):
    for kind in ("query.fail", "query.nothing"):
        (reply,) = _send(grid, kind, (3,))
        assert (reply.error.code, reply.error.reason) == (8, "ClientAppCrashed")
        assert reply.metadata.src_node_id == 3
    assert len(_said(_send(grid))) == len(NODES)


def test_an_answer_to_another_message_counts_as_crashed_and_keeps_no_state(grid):
    before = {said["node"]: said["seen"] for said in _said(_send(grid))}
    (reply,) = _send(grid, "query.another", (3,))
    assert (reply.error.code, reply.error.reason) == (8, "ClientAppCrashed")
    assert {said["node"]: said["seen"] - 1 for said in _said(_send(grid))} == before


def test_an_answer_that_cannot_be_read_is_logged_and_its_worker_replaced(grid, monkeypatch, caplog):
    before = {said["process"] for said in _said(_send(grid))}
    with monkeypatch.context() as patched:
        patched.setattr(worker_process, "from_wire", lambda data: json.loads("{"))
        (reply,) = _send(grid, nodes=(3,))
    assert (reply.error.code, reply.error.reason) == (8, "ClientAppCrashed")
    assert "is no answer" in caplog.text
    assert "JSONDecodeError" in caplog.text
    deadline = time.monotonic() + 60
    while len(now := {said["process"] for said in _said(_send(grid))}) < 2:
        assert time.monotonic() < deadline
    assert len(now - before) == 1


def test_a_node_stays_with_its_worker_or_its_old_one_forgets_it(grid, tmp_path):
    homes = {said["node"]: said["process"] for said in _said(_send(grid))}
    again = {said["node"]: said["process"] for said in _said(_send(grid, nodes=NODES[:1]))}
    assert again[NODES[0]] == homes[NODES[0]]
    # One worker is held up with a node of its own; the other takes over the rest of them.
    homes = {said["node"]: said["process"] for said in _said(_send(grid))}
    held = homes[NODES[-1]]
    stuck = NODES[-1]
    gate = tmp_path / "gate"
    message = Message(_asked(tmp_path, gate), dst_node_id=stuck, message_type="query.wait")
    (held_id,) = grid.push_messages([message])
    while not (tmp_path / f"begun-{stuck}").exists():
        time.sleep(0.01)
    others = tuple(node for node in NODES if node != stuck)
    taken = _said(_send(grid, nodes=others))
    assert {said["process"] for said in taken} == set(homes.values()) - {held}
    moved = {node for node in others if homes[node] == held}
    assert moved <= {node for said in taken for node in said["forgotten"]}
    gate.touch()
    while not list(grid.pull_messages([held_id])):
        pass


def test_a_killed_worker_is_a_crashed_app_and_is_replaced(grid, tmp_path):
    before = {said["process"] for said in _said(_send(grid))}
    states = {said["node"]: said["seen"] for said in _said(_send(grid))}
    content = _asked(tmp_path, dies=[NODES[1]])
    replies = _send(grid, "query.wait", content=content)
    (crashed,) = [reply for reply in replies if reply.has_error()]
    assert (crashed.error.code, crashed.error.reason) == (8, "ClientAppCrashed")
    assert crashed.metadata.src_node_id == NODES[1]
    assert len(replies) == len(NODES)
    gone = {process for process in before if not _alive(process)}
    assert len(gone) == 1
    seen = {said["node"]: said["seen"] for said in _said(_send(grid))}
    # The killed one's state is that of before; the others' has counted two messages more.
    assert seen == {n: states[n] + (1 if n == NODES[1] else 2) for n in NODES}
    deadline = time.monotonic() + 60
    while len(now := {said["process"] for said in _said(_send(grid))}) < 2:
        assert time.monotonic() < deadline
    assert len(now - before) == 1


def test_a_message_that_nobody_waits_for_is_not_worked_on(grid, tmp_path):
    late = Message(_asked(tmp_path), dst_node_id=2, message_type="query.wait", ttl=0.001)
    time.sleep(0.01)
    grid.push_messages([late])
    assert len(_send(grid)) == len(NODES)
    assert not (tmp_path / "begun-2").exists()


def test_an_unknown_node_is_an_error(grid):
    with pytest.raises(ValueError, match="There is no node 99"):
        _send(grid, nodes=(99,))


def test_an_app_that_cannot_be_imported_is_named_and_leaves_nothing_behind():
    threads = set(threading.enumerate())
    made = ProcessesGrid("no_such_package.app:app", {2: {}}, workers=1)
    process = made._running[0]._process.pid if made._running else None
    with pytest.raises(WorkerFailed, match="No module named 'no_such_package'"):
        _send(made, nodes=(2,))
    with pytest.raises(WorkerFailed):
        made.push_messages([])
    made.close()
    assert process is None or not _alive(process)
    assert set(threading.enumerate()) == threads


def test_a_worker_that_dies_before_it_has_started_is_named():
    made = ProcessesGrid("engine_app:app", {2: {}}, workers=1)
    while not made._running:
        time.sleep(0.005)
    os.kill(made._running[0]._process.pid, signal.SIGKILL)
    with pytest.raises(WorkerFailed, match="ended with code -9 before it had started"):
        _send(made, nodes=(2,))
    made.close()


def test_closing_while_workers_start_does_not_wait_for_them():
    made = ProcessesGrid("engine_app:app", {2: {}}, workers=2)
    while len(made._running) < 2:
        time.sleep(0.005)
    processes = [worker._process.pid for worker in made._running.values()]
    made.push_messages([Message(RecordDict(), dst_node_id=2, message_type="train")])
    made.close()
    assert not any(map(_alive, processes))


def test_gpus_are_given_out_in_turn_before_a_worker_starts(monkeypatch):
    monkeypatch.setattr(worker_process.torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert worker_process.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert worker_process.visible_gpus() == ["3", "5"]
    environments = []

    class Started:
        pid, returncode = 0, 0

        def __init__(self, words, **options):
            environments.append(options["env"]["CUDA_VISIBLE_DEVICES"])

        def wait(self, timeout=None):
            return 0

        def kill(self):
            pass

    monkeypatch.setattr(worker_process.subprocess, "Popen", Started)
    made = ProcessesGrid("engine_app:app", {2: {}}, workers=3)
    while len(environments) < 3:
        time.sleep(0.005)
    made.close()
    assert sorted(environments) == ["3", "3", "5"]
    monkeypatch.setattr(worker_process.torch.cuda, "device_count", lambda: 0)
    assert worker_process.visible_gpus() == []
