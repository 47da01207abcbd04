"""Attacks by insiders, by whoever reaches the port, and by the coordinator itself: refused by name.

Sites 1 and 2 run; the test speaks for the others, with their keys: an insider and its victim.
By hand: ``LEPTON_FUZZ_S=600`` for ten minutes of malformed calls.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import signal
import threading
import time
import zipfile
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from faults import below
from federation import Federation
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import TIMESTAMP_HEADER
from flwr.common.serde import fab_to_proto, message_to_proto
from flwr.proto import control_pb2, fleet_pb2, heartbeat_pb2, message_pb2, node_pb2
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from lepton_client.app import app
from lepton_client.attendance import connector
from lepton_common.audit import read_records
from lepton_common.control import control_pb2 as wire
from lepton_common.control.control_pb2_grpc import ControlStub, SitesStub
from lepton_common.flower.fleet import FleetNode
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.parcel import Parcel
from lepton_common.flower.superlink import SuperLink
from lepton_common.flower.task_identity import speak_for
from lepton_common.identity.certificates import issue_leaf
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.sealed import sign_reply
from lepton_server.gateway.nodes import read_nodes
from lepton_server.gateway.signed_grid import SignedGrid

pytestmark = pytest.mark.system
FUZZ_S = float(os.environ.get("LEPTON_FUZZ_S", "15"))
SEED = int(os.environ.get("LEPTON_FUZZ_SEED", "20261121"))
VICTIM, INSIDER = "site-3", "site-4"
RUN = (
    "task=breast_cancer rounds=1 privacy=record privacy.epsilon=0.2 privacy.spare_rounds=4 sites=4 "
    "secagg.stage_timeout_s=10 federation.round_timeout_s=20"
)
MOST_GROWTH = 256 << 20
PARTS = ("superlink_process", "nginx: ", "lepton_server.gateway.executor")


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    made = Federation(tmp_path_factory.mktemp("attacks"))
    made.make()
    try:
        made.start("server", "srv")
        for site in ("site-1", "site-2"):
            made.start("site", site)
        made.until(lambda: all("Connected" in made.log(s) for s in ("site-1", "site-2")), 300)
        yield made
    finally:
        made.stop()


@pytest.fixture
def node(federation):
    """Returns what connects as a site's node."""
    with contextlib.ExitStack() as opened:

        def connect(site):
            url = f"https://localhost:{federation.port}"
            file = federation.path / site / "node.pem"
            made = opened.enter_context(FleetNode(url, federation.tls(site), file))
            over = threading.Event()
            heart = threading.Thread(target=beat, args=(made, over), daemon=True)
            heart.start()
            opened.callback(heart.join)
            opened.callback(over.set)
            return made

        yield connect


@pytest.fixture
def link(federation):
    """The SuperLink, as its owner speaks to it, once the executor has ended its last task."""
    made = speak(federation)
    runs = lambda: made._control.ListRuns(control_pb2.ListRunsRequest()).run_dict.values()  # noqa: E731
    # One that is held up while it has a task loses that, and is started again.
    federation.until(lambda: all(run.status.status == "finished" for run in runs()))
    yield made
    made.close()


def beat(node, over):
    while not over.wait(10):
        with contextlib.suppress(httpx.HTTPError):
            node.beat()


def speak(federation, secret=None):
    (executor,) = federation.children("lepton_server.gateway.executor")
    words = Path(f"/proc/{executor}/cmdline").read_bytes().decode().split("\0")
    private = federation.path / "srv" / "gateway"
    authority = (private / "own.crt").read_text()
    address = next(word for word in words if word.startswith("127.0.0.1:"))
    return SuperLink(address, authority, secret or (private / "secret").read_bytes())


def receive(federation, node):
    found = []
    federation.until(
        lambda: found.append(node.receive(lambda _: False)) or found[-1] is not None, 180
    )
    return found[-1]


def answer(federation, site, node, message):
    """Returns a site's honest reply, signed."""
    speak_for(message.metadata.run_id, node.node_id)
    folder = federation.path / site
    reply = app(message, node.context(message.metadata.run_id, {"site": str(folder)}))
    sign_reply(reply, key(federation, site))
    return reply


def key(federation, site):
    return SigningKey.load(federation.path / site / "signing.pem")


def introduced(federation, run):
    """Who was let into a run, and why the others were not."""
    path = federation.run(run) / "server" / "audit.jsonl"
    found = []
    federation.until(
        lambda: (
            path.exists()
            and found.extend(r.body for r in read_records(path) if r.kind == "introduced") is None
            and found
        ),
        180,
    )
    return found[-1]


def ended(federation, run):
    path = federation.run(run) / "outcome.json"
    federation.until(path.exists, 180)
    return json.loads(path.read_text())


def test_a_forged_and_a_replayed_reply_count_for_nobody(federation, node):
    victim, insider = node(VICTIM), node(INSIDER)
    first = federation.submit(f"{RUN} seed=1")
    asked, own = receive(federation, victim), receive(federation, insider)
    with pytest.raises(httpx.HTTPStatusError) as refused:  # what is asked of another is not told
        insider._client.PullMessages(
            fleet_pb2.PullMessagesRequest(node=node_pb2.Node(node_id=victim.node_id))
        )
    assert refused.value.response.status_code == 401
    genuine = answer(federation, VICTIM, victim, asked)
    forged = Message(genuine.content.copy(), reply_to=asked)
    del forged.content["sender"]
    sign_reply(forged, key(federation, INSIDER))  # it says that it is the victim's
    insider.send(Parcel.of(forged, 0.1))
    honest = answer(federation, INSIDER, insider, own)
    insider.send(Parcel.of(honest, 0.1))
    with contextlib.suppress(httpx.HTTPStatusError):
        insider.send(Parcel.of(honest, 0.1))  # the same again
    found = introduced(federation, first)
    assert found["failed"] == ["BadSignature"]
    assert set(found["keys"]) == {"site-1", "site-2", INSIDER}
    federation.do(f"run stop {first} --as dora")
    ended(federation, first)

    second = federation.submit(f"{RUN} seed=2")
    asked, own = receive(federation, victim), receive(federation, insider)
    speak_for(asked.metadata.run_id, victim.node_id)
    victim.send(Parcel.of(Message(genuine.content, reply_to=asked), 0.1))  # the first run's answer
    insider.send(Parcel.of(answer(federation, INSIDER, insider, own), 0.1))
    assert introduced(federation, second)["failed"] == ["BadSignature"]
    federation.do(f"run stop {second} --as dora")
    ended(federation, second)


def test_what_a_site_sends_ends_no_run_however_malformed(federation, node):
    victim, insider = node(VICTIM), node(INSIDER)
    run = federation.submit(f"{RUN} seed=3")
    asked, own = receive(federation, victim), receive(federation, insider)
    speak_for(asked.metadata.run_id, victim.node_id)
    junk = Message(RecordDict({"site": ConfigRecord({"json": "\0" * 1000})}), reply_to=asked)
    sign_reply(junk, key(federation, VICTIM))
    victim.send(Parcel.of(junk, 0.1))
    send_unreadable(insider, answer(federation, INSIDER, insider, own))
    assert sorted(introduced(federation, run)["failed"]) == ["MalformedMessage", "ReplyLost"]
    end = ended(federation, run)
    assert end.get("error") != "RunError", federation.log("srv")[-3000:]


def send_unreadable(node, reply):
    """Sends objects that have the right digests, of which the outermost is no message."""
    assign_message_id(reply, reply.object_id)
    head, _, body = reply.deflate().partition(b"\0")
    spoilt = head + b"\0" + b"\xff" * len(body)
    name = hashlib.sha256(spoilt).hexdigest()
    said, tree = message_to_proto(Message(RecordDict(), reply_to=reply)), get_object_tree(reply)
    said.metadata.CopyFrom(message_to_proto(reply).metadata)
    said.metadata.message_id = tree.object_id = name
    pushed = node._client.PushMessages(
        fleet_pb2.PushMessagesRequest(
            node=node._node, messages_list=[said], message_object_trees=[tree],
            clientapp_runtime_list=[0.1],
        )
    )  # fmt: skip
    contents = {n: o.deflate() for n, o in get_all_nested_objects(reply).items()} | {name: spoilt}
    for object_id in pushed.objects_to_push:
        node._client.PushObject(
            message_pb2.PushObjectRequest(
                node=node._node, run_id=reply.metadata.run_id, object_id=object_id,
                object_content=contents[object_id], session_id=pushed.session_id,
            )
        )  # fmt: skip


def test_a_coordinator_that_sends_garbage_gets_named_errors_and_sites_live(federation, link):
    (executor,) = federation.children("lepton_server.gateway.executor")
    os.kill(executor, signal.SIGSTOP)  # the coordinator is someone else now
    try:
        link.start_run({"run": "mine"})
        with link.task() as given:
            grid = SignedGrid(given[0], read_nodes(federation.path / "srv"), lambda _: None)
            nodes = list(grid.get_node_ids())
            assert len(nodes) == 2
            chance = np.random.default_rng(SEED)
            messages = [
                Message(content, dst_node_id=node, message_type=kind, ttl=60.0)
                for node in nodes
                for kind in ("query.hello", "train", "evaluate", "query.nothing", "train.nothing")
                for content in (RecordDict(), garbage(chance))
            ]
            replies = list(grid.send_and_receive(messages, timeout=120.0))
    finally:
        os.kill(executor, signal.SIGCONT)
    assert len(replies) == len(messages)
    names = {reply.error.reason for reply in replies}  # not one has content
    assert names <= {"MalformedMessage", "ConsentRefused"}, names
    for site in ("site-1", "site-2"):
        assert federation.processes[site].poll() is None
        log = read_records(federation.path / site / "audit.jsonl")
        assert sum(r.kind == "refusal" for r in log) >= len(messages) // 2
        assert "Traceback" not in federation.log(site)


def garbage(chance):
    records = {
        str(name): ConfigRecord({"json": chance.bytes(200).decode("latin-1"), "n": 7})
        for name in chance.choice(["request", "secagg", "model", "x"], 2, replace=False)
    }
    return RecordDict(records)


def test_code_in_a_run_s_bundle_is_run_nowhere(federation, link):
    (executor,) = federation.children("lepton_server.gateway.executor")
    marker = federation.path / "code-has-run"
    code = f"open({str(marker)!r}, 'w').close()\n"
    project = (
        '[project]\nname = "lepton"\nversion = "1.0.0"\n[tool.flwr.app]\npublisher = "lepton"\n'
        '[tool.flwr.app.components]\nserverapp = "lepton_server.app:app"\n'
        'clientapp = "lepton_client.app:app"\n[tool.flwr.app.config]\n'
    )
    files = {
        "pyproject.toml": project, "lepton_server/__init__.py": code, "sitecustomize.py": code,
        "lepton_server/app.py": code, "lepton_client/__init__.py": code,
    }  # fmt: skip
    listed = "".join(
        f"{name},{hashlib.sha256(text.encode()).hexdigest()},{8 * len(text)}\n"
        for name, text in files.items()
    )
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as bundle:
        for name, text in {**files, ".info/CONTENT": listed}.items():
            bundle.writestr(name, text)
    fab = Fab(hashlib.sha256(held.getvalue()).hexdigest(), held.getvalue(), {})
    before = federation.log("srv").count("that nobody submitted")
    link._control.StartRun(control_pb2.StartRunRequest(fab=fab_to_proto(fab)))
    federation.until(lambda: federation.log("srv").count("that nobody submitted") > before)
    assert not marker.exists()
    assert federation.children("lepton_server.gateway.executor") == [executor]


def test_nobody_takes_the_executor_s_task_without_its_secret(federation):
    thief = speak(federation, secret=os.urandom(32))
    with pytest.raises(httpx.HTTPStatusError) as refused, thief.task():
        pass
    assert refused.value.response.status_code in (401, 403)
    # Nor does anybody else on its machine let nodes in, start runs or see them.
    for call in (lambda: thief.unregister(1), lambda: thief.start_run({})):
        with pytest.raises(httpx.HTTPStatusError) as refused:
            call()
        assert refused.value.response.status_code == 403
    thief.close()


def channel(federation, who):
    leaf = issue_leaf(key(federation, who), who)
    return connector(federation.roster.coordinator, leaf)()


def test_the_control_service_answers_nobody_but_whom_the_certificate_names(federation):
    credentials = grpc.ssl_channel_credentials(federation.roster.coordinator.authority.encode())
    with grpc.secure_channel(f"localhost:{federation.port}", credentials) as nobody:
        for call in (
            lambda: ControlStub(nobody).List(wire.ListRequest(), timeout=60),
            lambda: SitesStub(nobody).Report(wire.Heads(), timeout=60),
        ):
            with pytest.raises(grpc.RpcError):
                call()
    said = [("x-lepton-person", "dora"), ("x-lepton-site", "site-1")]
    request = wire.SubmitRequest(proposal="{}")
    with channel(federation, "eve") as eve, pytest.raises(grpc.RpcError) as refused:
        ControlStub(eve).Submit(request, metadata=said, timeout=60)
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert refused.value.details().startswith("NotAllowed: ")
    calls = [r.body for r in read_records(federation.path / "srv" / "audit.jsonl")]
    assert {"by": "eve", "call": "Submit", "run": "", "allowed": False} in calls


def test_malformed_calls_bring_nothing_down(federation):
    before = {part: federation.children(part) for part in PARTS}
    assert all(before.values()), before
    held, counts = memory(federation), {}
    chance, until = np.random.default_rng(SEED), time.monotonic() + FUZZ_S
    with (
        httpx.Client(verify=federation.tls(INSIDER), timeout=60.0, trust_env=False) as client,
        channel(federation, INSIDER) as site,
        channel(federation, "eve") as person,
    ):
        address = f"https://localhost:{federation.port}/v1/fleet/"
        assert client.post(address + "push-object", content=bytes(17 << 20)).status_code == 413
        while time.monotonic() < until:
            path, body = malformed(federation, chance)
            answer = client.post(address + path, content=body, headers=signed(federation))
            counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
            for opened, name in ((site, "Sites/Report"), (person, "Control/Watch")):
                call = opened.unary_unary(f"/lepton.control.v1.{name}")
                with pytest.raises(grpc.RpcError) as refused:
                    call(chance.bytes(int(chance.integers(1, 4000))), timeout=60)
                code = refused.value.code().name
                counts[code] = counts.get(code, 0) + 1
    now = memory(federation)
    print(f"seed {SEED}, {FUZZ_S:.0f} s: {counts}")
    for part in sorted(held):
        print(f"{part}: {held[part] >> 20} MiB before, {now[part] >> 20} after")
    assert sum(now.values()) - sum(held.values()) < MOST_GROWTH
    assert {part: federation.children(part) for part in PARTS} == before
    assert federation.processes["srv"].poll() is None


def malformed(federation, chance):
    """Returns a path of the fleet API and a body: noise, or a real request with bytes changed."""
    node = node_pb2.Node(node_id=int(chance.integers(1 << 62)))
    real = {
        "activate-node": fleet_pb2.ActivateNodeRequest(public_key=b"k", heartbeat_interval=30.0),
        "deactivate-node": fleet_pb2.DeactivateNodeRequest(node_id=node.node_id),
        "send-node-heartbeat": heartbeat_pb2.SendNodeHeartbeatRequest(node=node),
        "pull-messages": fleet_pb2.PullMessagesRequest(node=node),
        "push-messages": fleet_pb2.PushMessagesRequest(
            node=node, messages_list=[message_pb2.Message()],
            message_object_trees=[message_pb2.ObjectTree(object_id="a" * 64)],
        ),
        "push-object": message_pb2.PushObjectRequest(node=node, object_content=bytes(99)),
        "pull-object": message_pb2.PullObjectRequest(node=node, object_id="a" * 64),
        "confirm-message-received": message_pb2.ConfirmMessageReceivedRequest(node=node),
    }  # fmt: skip
    path = str(chance.choice(list(real)))
    if chance.random() < 0.3:
        return path, chance.bytes(int(chance.integers(1, 100_000)))
    body = bytearray(real[path].SerializeToString())
    for _ in range(int(chance.integers(4))):
        body[int(chance.integers(len(body)))] = int(chance.integers(256))
    return path, bytes(body)


def signed(federation):
    """Headers that the insider's node key has signed, so that bodies are looked at."""
    private = load_ssh_private_key((federation.path / INSIDER / "node.pem").read_bytes(), None)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    text = lambda data: base64.b64encode(data).decode()  # noqa: E731
    return {
        "content-type": "application/protobuf",
        FLEET_HTTP_PUBLIC_KEY_HEADER: text(public_key_to_bytes(private.public_key())),
        TIMESTAMP_HEADER: stamp,
        FLEET_HTTP_SIGNATURE_HEADER: text(sign_message(private, stamp.encode())),
    }


def memory(federation):
    """Bytes that the coordinator's processes hold, each page counted once: by process."""
    held, coordinator = {}, federation.processes["srv"].pid
    for process in {coordinator, *below(coordinator)}:
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{process}/cmdline").read_bytes().decode()
            part = next((name for name in PARTS if name in words), "control service")
            text = Path(f"/proc/{process}/smaps_rollup").read_text()
            held[part] = held.get(part, 0) + sum(
                int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("Pss:")
            )
    return held


def test_after_all_that_a_run_is_as_ever(federation):
    for site in (VICTIM, INSIDER):
        federation.start("site", site)
    federation.until(
        lambda: all("Connected" in federation.log(s) for s in (VICTIM, INSIDER)), timeout=300
    )
    patient = RUN.replace("_s=10", "_s=60").replace("_s=20", "_s=120")  # two agents are cold
    name = federation.submit(f"{patient} seed=9")
    last = json.loads(federation.watch(name, timeout=600).stdout.splitlines()[-1])
    assert (last["status"], last["rounds"]) == ("finished", 1)
    assert federation.rounds(name)[0]["failed"] == {}
