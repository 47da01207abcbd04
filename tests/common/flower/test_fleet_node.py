"""A node of the fleet comes, breaks off, comes back as itself, and leaves."""

import ssl

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.app import Array, ArrayRecord, RecordDict
from flwr.proto.fleet_pb2 import ActivateNodeResponse, DeactivateNodeRequest, DeactivateNodeResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from lepton_common.flower import fleet
from lepton_common.flower.fleet import FleetNode, push_bounded


class SuperLink:
    """Knows one node, by one number."""

    def __init__(self, node_id):
        self.node_id, self.calls = node_id, []

    def __call__(self, request):
        call = request.url.path.rsplit("/", 1)[1]
        self.calls.append(call)
        if call == "activate-node":
            return self._said(ActivateNodeResponse(node_id=self.node_id))
        if call == "deactivate-node":
            assert DeactivateNodeRequest.FromString(request.content).node_id == self.node_id
            return self._said(DeactivateNodeResponse())
        asked = SendNodeHeartbeatRequest.FromString(request.content).node.node_id
        if asked != self.node_id:
            return httpx.Response(401)
        return self._said(SendNodeHeartbeatResponse(success=True))

    def _said(self, message):
        headers = {"content-type": "application/x-protobuf"}
        return httpx.Response(200, content=message.SerializeToString(), headers=headers)


@pytest.fixture
def connect(tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    form = (Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (tmp_path / "node.pem").write_bytes(key.private_bytes(*form))

    def made(superlink, last_id=None):
        def stand_in(client, tls):
            client._client._transport = httpx.MockTransport(superlink)

        monkeypatch.setattr(fleet, "carry_in_bulk", stand_in)
        tls = ssl.create_default_context()
        return FleetNode("https://localhost:1", tls, tmp_path / "node.pem", last_id)

    return made


def test_who_was_never_there_is_activated_and_leaves_in_the_end(connect):
    superlink = SuperLink(7)
    with connect(superlink) as node:
        assert node.node_id == 7
        node.beat()
    assert superlink.calls == ["activate-node", "send-node-heartbeat", "deactivate-node"]


def test_who_breaks_off_stays_and_comes_back_as_itself(connect):
    superlink = SuperLink(7)
    with pytest.raises(httpx.ReadError), connect(superlink):
        raise httpx.ReadError("reset")
    with connect(superlink, last_id=7) as node:
        assert node.node_id == 7
    assert superlink.calls == ["activate-node", "send-node-heartbeat", "deactivate-node"]


def test_a_superlink_that_does_not_know_the_last_number_gives_a_new_one(connect):
    superlink = SuperLink(8)
    with connect(superlink, last_id=7) as node:
        assert node.node_id == 8
    assert superlink.calls == ["send-node-heartbeat", "activate-node", "deactivate-node"]


def test_who_fails_otherwise_leaves(connect):
    superlink = SuperLink(7)
    with pytest.raises(ValueError, match="broken"), connect(superlink):
        raise ValueError("broken")
    assert superlink.calls[-1] == "deactivate-node"


def test_objects_are_made_into_bytes_two_at_a_time():
    data = bytes(range(256)) * 1024
    array = Array(dtype="uint8", shape=(len(data),), stype="x", data=data)
    message = RecordDict({"model": ArrayRecord({"vector": array})})
    objects = get_all_nested_objects(message)
    wanted, left, sent = list(objects)[1:], [], {}

    def push(key, content):
        left.append(len(objects))
        sent[key] = content

    expected = {key: each.deflate() for key, each in objects.items()}
    push_bounded(objects, push, object_ids_to_push=set(wanted))
    assert sent == {key: expected[key] for key in wanted}
    assert max(left) >= len(expected) - 2
    with pytest.raises(ZeroDivisionError):
        push_bounded(
            get_all_nested_objects(message), lambda *_: 1 / 0, object_ids_to_push=set(wanted)
        )
