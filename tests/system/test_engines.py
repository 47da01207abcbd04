"""Engines of several processes as a user starts them: killed, interrupted, and on a Ray cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lepton_cli.run import Run
from lepton_cli.simulation import resume
from lepton_server.run_folder import RunFolder

pytestmark = pytest.mark.system

_WORDS = (
    "task=breast_cancer", "model=layers", "layers=[linear600,relu]", "sites=5", "rounds=4",
    "federation.cohort=4", "privacy=none", "seed=7",
)  # fmt: skip
_LEPTON = (sys.executable, "-m", "lepton_cli")


def _start(runs, *words, **options):
    return subprocess.Popen(
        [*_LEPTON, "simulate", *_WORDS, *words, f"runs={runs}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        **options,
    )


def _run(runs, *words):
    """A run from its first to its last line; returns the run."""
    process = _start(runs, *words)
    out, err = process.communicate(timeout=500)
    assert process.returncode == 0, out + err
    return _only(runs)


def _only(runs):
    (folder,) = Path(runs).glob("2*")
    return Run(RunFolder(folder))


def _same(first, second):
    models = [load_file(run.folder.final_model) for run in (first, second)]
    return all(np.array_equal(models[0][name], models[1][name]) for name in models[0])


def _children(process):
    """The workers of a process that runs, whatever their parent is by then."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command, status = path.read_bytes(), (path.parent / "status").read_text()
        except OSError:
            continue
        if b"lepton_server.engines.worker" in command and f"PPid:\t{process}\n" in status:
            found.append(int(path.parent.name))
    return found


def _until(holds, timeout=300):
    deadline = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The run on one thread."""
    return _run(tmp_path_factory.mktemp("alone"), "engine.workers=1")


@pytest.mark.parametrize("secagg", ["none", "sa1"])
def test_a_killed_run_leaves_no_process_and_no_memory_and_goes_on(tmp_path, secagg):
    before = set(Path("/dev/shm").iterdir())
    words = ("engine=processes", "engine.workers=2", f"secagg={secagg}")
    process = _start(tmp_path / "killed", *words)
    _until(lambda: list(tmp_path.glob("killed/*/metrics.jsonl")))
    workers = _children(process.pid)
    assert len(workers) == 2
    process.kill()
    process.communicate(timeout=60)
    _until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers), 10)
    assert set(Path("/dev/shm").iterdir()) == before
    killed = _only(tmp_path / "killed")
    assert 1 <= len(killed.rounds) < 4
    finished = resume(killed)
    assert finished.evidence.witnessed >= 4 * 4
    assert set(Path("/dev/shm").iterdir()) == before
    assert _same(finished, _run(tmp_path / "unbroken", "engine.workers=1", f"secagg={secagg}"))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_once_or_twice_shows_no_traceback_and_leaves_no_worker(tmp_path, times):
    process = _start(
        tmp_path, "engine=processes", "engine.workers=2", "rounds=400", start_new_session=True
    )
    _until(lambda: list(tmp_path.glob("*/metrics.jsonl")))
    workers = _children(process.pid)
    assert len(workers) == 2
    for _ in range(times):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    # A killed worker has still to be buried, by whoever takes over the children of the dead.
    _until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))


def test_an_app_of_a_script_without_a_guard_is_not_run_again_by_workers(tmp_path):
    script = tmp_path / "script.py"
    words = ", ".join(repr(word) for word in (*_WORDS, "engine=processes", "engine.workers=2"))
    script.write_text(f"import lepton_cli\nprint(lepton_cli.simulate({words}).status)\n")
    ended = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "finished"
    assert len(list(tmp_path.glob("runs/2*"))) == 1


# Ray leaves files and sockets to the collector, which would be warnings in this process.
_CLUSTER = """
import json, os, signal, sys, time
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
import ray
from ray.cluster_utils import Cluster

cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8},
)
cluster.add_node(num_cpus=1, object_store_memory=10**8)
cluster.wait_for_nodes()
print(json.dumps({"address": cluster.address}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(scope="module")
def cluster():
    """The address of a Ray cluster of two nodes on this machine."""
    process = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    line = ""
    while not line.startswith("{"):
        line = process.stdout.readline()
        assert line, "the cluster did not start"
    yield json.loads(line)["address"]
    process.stdin.close()
    process.wait(60)
    process.stdout.close()


@pytest.mark.parametrize("secagg", ["none", "sa1"])
def test_a_cluster_of_two_nodes_ends_in_the_same_model(tmp_path, cluster, secagg):
    words = (f"secagg={secagg}",)
    run = _run(tmp_path / "ray", *words, "engine=ray", f"engine.address={cluster}")
    assert _same(run, _run(tmp_path / "alone", *words, "engine.workers=2"))
    assert run.evidence.witnessed >= 4 * 4
    assert all(not report.failed for report in run.rounds)


def test_privacy_on_a_cluster_is_charged_as_anywhere(tmp_path, cluster):
    words = ("privacy=record", "secagg=sa1")
    run = _run(tmp_path / "ray", *words, "engine=ray", f"engine.address={cluster}")
    other = _run(tmp_path / "alone", *words)
    spent = [{n: s.epsilon for n, s in one.evidence.sites.items()} for one in (run, other)]
    assert spent[0] == spent[1]
    assert not _same(run, other)


def test_one_machine_starts_ray_and_ends_it(tmp_path, expected):
    run = _run(tmp_path, "engine=ray", "engine.workers=2")
    assert _same(run, expected)


_ACTORS = """
import os, sys
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from lepton_server.engines.ray import RayGrid

grid = RayGrid(
    "engine_app:app", {n: {"site": str(n)} for n in range(2, 6)}, workers=2, threads_per_site=1,
    forget="engine_app:forget", address=sys.argv[1],
)

def send(kind="train", **asked):
    content = RecordDict({"asked": ConfigRecord({"begun": sys.argv[2], "until": "", **asked})})
    messages = [Message(content, dst_node_id=n, message_type=kind) for n in range(2, 6)]
    return list(grid.send_and_receive(messages, timeout=200))

def said(replies):
    return [reply.content["said"] for reply in replies if reply.has_content()]

first = said(send(dies=[0]))
assert sorted(one["node"] for one in first) == [2, 3, 4, 5]
assert {one["threads"] for one in first} == {1}
assert all(one["seen"] == 1 and one["site"] == str(one["node"]) for one in first)
served = [(one["node"], one["process"]) for one in first]
for round_ in range(2, 7):
    replies = said(send(dies=[0]))
    assert {one["seen"] for one in replies} == {round_}
    for one in replies:
        before = [process for node, process in served if node == one["node"]][-1]
        if before != one["process"]:
            assert one["node"] in one["forgotten"]
        served.append((one["node"], one["process"]))
assert len({process for _, process in served}) == 2
(lost,) = [reply for reply in send("query.wait", dies=[3]) if reply.has_error()]
assert (lost.error.code, lost.error.reason) == (8, "ClientAppCrashed")
assert lost.metadata.src_node_id == 3
assert len(said(send(dies=[0]))) == 4
assert all(reply.has_error() for reply in send("query.fail", dies=[0]))
grid.close()
print("good")
"""


def test_actors_serve_all_nodes_and_a_killed_one_is_a_crashed_app(tmp_path, cluster):
    ended = subprocess.run(
        [sys.executable, "-c", _ACTORS, cluster, str(tmp_path / "begun")],
        capture_output=True, text=True, timeout=400, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert ended.stdout.splitlines()[-1:] == ["good"], ended.stderr


def test_an_address_where_no_cluster_is_is_named(tmp_path):
    process = _start(tmp_path, "engine=ray", "engine.address=127.0.0.1:1")
    out, err = process.communicate(timeout=300)
    assert process.returncode == 5, out + err
    assert "Cannot reach a Ray cluster at engine.address=127.0.0.1:1" in err
