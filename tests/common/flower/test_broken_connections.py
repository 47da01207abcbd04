"""Connections break at each call of a whole exchange in turn: one answer arrives, and one only."""

import ssl
import time

import httpx
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.server.superlink.linkstate.in_memory_linkstate import InMemoryLinkState
from superlink_inside import RUN, SuperLinkInside

from lepton_common.errors import MalformedMessage
from lepton_common.flower import fleet
from lepton_common.flower.fleet import FleetNode
from lepton_common.flower.parcel import Parcel
from lepton_common.flower.task_identity import speak_for

NEVER = lambda _: False  # noqa: E731


def records(seed):
    values = drawn(seed)
    return RecordDict({"model": ArrayRecord({"a": Array(values[:200]), "b": Array(values[200:])})})


def values_of(message):
    return np.concatenate([a.numpy() for a in message.content["model"].values()])


def drawn(seed):
    return np.random.default_rng(seed).random(500, dtype=np.float32)


@pytest.fixture
def connect(tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    form = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "node.pem").write_bytes(key.private_bytes(*form))
    monkeypatch.setattr(fleet, "_FIRST_WAIT_S", 0.001)
    monkeypatch.setattr(fleet, "_PATIENCE_S", 0.5)
    tls = ssl.create_default_context()

    def made(superlink, **more):
        def stand_in(client, tls):
            client._client._transport = httpx.MockTransport(superlink)

        monkeypatch.setattr(fleet, "carry_in_bulk", stand_in)
        return FleetNode("https://localhost:1", tls, tmp_path / "node.pem", superlink.node, **more)

    return made


class Polled(SuperLinkInside):
    """Its run's app looks for replies after each call, when a reply is there in part only."""

    def __call__(self, request):
        try:
            return super().__call__(request)
        finally:
            self.poll()


def exchange(superlink, connect):
    """A site receives, answers, and goes on until nothing more comes; returns what it received."""
    asked, received, answered = superlink.ask(records(1)), [], set()
    for _ in range(4):
        try:
            with connect(superlink) as node:
                message = node.receive(answered.__contains__)
                if message is None:
                    continue
                answered.add(message.metadata.message_id)
                received.append(message)
                speak_for(RUN, superlink.node)
                node.send(Parcel.of(Message(records(2), reply_to=message), 0.1))
        except httpx.TransportError:
            # The others are tried again at once.
            broken = superlink.calls[superlink.cut - 1]
            assert broken in ("pull-messages", "send-node-heartbeat")
    return asked, received


@pytest.fixture
def calls(tmp_path, connect):
    """How many calls an exchange is made of."""
    superlink = Polled(tmp_path / "whole")
    exchange(superlink, connect)
    kinds = ("push-object", "pull-object", "confirm-message-received", "push-messages")
    assert set(kinds) <= set(superlink.calls)
    return len(superlink.calls)


@pytest.mark.parametrize("heard", [False, True], ids=["on its way there", "on its way back"])
def test_whatever_call_breaks_one_answer_arrives(heard, calls, tmp_path, connect):
    for number in range(2, calls + 1):  # the first is the node's way to see if it is known
        superlink = Polled(tmp_path / str(number))
        superlink.cut, superlink.heard = number, heard
        asked, received = exchange(superlink, connect)
        assert len(superlink.calls) >= number
        assert [m.metadata.message_id for m in received] == [asked], superlink.calls
        assert np.array_equal(values_of(received[0]), drawn(1))
        (reply,) = superlink.replies[asked]
        assert np.array_equal(values_of(reply), drawn(2))
        assert len(superlink.state.object_store) == 0


def test_flower_s_own_state_loses_what_this_one_keeps(calls, tmp_path, connect):
    superlink = SuperLinkInside(tmp_path / "stock", InMemoryLinkState)
    superlink.cut, superlink.heard = 2, True  # the announcement
    _, received = exchange(superlink, connect)
    assert superlink.calls[1] == "pull-messages"
    assert received == []


def test_a_reply_that_is_given_up_leaves_nothing(tmp_path, connect):
    superlink = SuperLinkInside(tmp_path / "objects")
    asked = superlink.ask(records(1), ttl=0.6)
    with connect(superlink) as node:
        message = node.receive(NEVER)
        speak_for(RUN, superlink.node)
        parcel = Parcel.of(Message(records(2), reply_to=message), 0.1)
        node._client.PushMessages(parcel.announced(node.node_id))  # and no object
        assert superlink.state.num_message_res() == 1
        superlink.poll()
        assert superlink.replies == {}
        time.sleep(max(0, parcel.until - time.time()) + 0.01)
        superlink.poll()
        (lost,) = superlink.replies[asked]
        assert lost.has_error()
        assert superlink.state.num_message_res() == 0
        node.send(parcel)  # nobody wants it, and that is no error
    assert len(superlink.state.object_store) == 0


def test_a_connection_that_stays_broken_is_given_up_and_what_is_stopped_at_once(tmp_path, connect):
    superlink = SuperLinkInside(tmp_path / "objects")
    superlink.ask(records(1))
    stopped = []

    def broken(request):
        if request.url.path.endswith("pull-object"):
            superlink.calls.append("broken")
            raise httpx.ReadError("broken", request=request)
        return superlink(request)

    broken.node = superlink.node
    with pytest.raises(httpx.ReadError), connect(broken) as node:
        node.receive(NEVER)
    tries = superlink.calls.count("broken")
    assert tries > 2
    stopped.append(True)
    with pytest.raises(httpx.ReadError), connect(broken, stopped=lambda: bool(stopped)) as node:
        node.receive(NEVER)
    assert superlink.calls.count("broken") - tries <= 2  # two at a time
    with connect(superlink) as node:
        assert np.array_equal(values_of(node.receive(NEVER)), drawn(1))


def test_a_coordinator_that_takes_no_more_is_given_up(tmp_path, connect):
    superlink = SuperLinkInside(tmp_path / "objects")
    superlink.ask(records(1))
    with connect(superlink) as node:
        message = node.receive(NEVER)
        superlink.state.object_store.put = None  # as on a full disk
        speak_for(RUN, superlink.node)
        parcel = Parcel.of(Message(records(2), reply_to=message), 0.1)
        with pytest.raises(ConnectionError, match="takes no more"):
            node.send(parcel)


def test_a_parcel_is_the_same_from_its_bytes(tmp_path, connect):
    superlink = SuperLinkInside(tmp_path / "objects")
    asked = superlink.ask(records(1))
    with connect(superlink) as node:
        message = node.receive(NEVER)
        speak_for(RUN, superlink.node)
        parcel = Parcel.of(Message(records(2), reply_to=message), 0.1)
        kept = {name: parcel.content(name) for name in parcel.names}
        again = Parcel(parcel.announcement, kept.__getitem__)
        assert (again.names, again.until) == (parcel.names, parcel.until)
        assert (again.reply_to, again.run_id) == (asked, RUN)
        node.send(again)
    superlink.poll()
    assert [len(replies) for replies in superlink.replies.values()] == [1]
    for spoilt in (b"", b"\xff" * 9):
        with pytest.raises(MalformedMessage):
            Parcel(spoilt, kept.__getitem__)
