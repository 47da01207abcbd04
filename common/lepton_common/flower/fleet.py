"""Flower's fleet API, as a site's agent speaks it: one node that asks, answers and shows life.

Flower's own SuperNode polls every three seconds and starts a fresh Python for each message; its
client code is used here without its loop.
"""

import contextlib
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Self

import httpx
from flwr.app import Context, Message, RecordDict

from lepton_common.errors import MalformedMessage
from lepton_common.flower.bulk_transport import carry_in_bulk
from lepton_common.flower.received import pull_message

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.inflatable.inflatable_object import InflatableObject

HEARTBEAT_S = 30.0
_AT_ONCE = 2


def push_bounded(
    objects: "dict[str, InflatableObject]",
    push_object_fn: Callable[[str, bytes], None],
    *,
    object_ids_to_push: set[str],
) -> None:
    """Pushes objects, two at a time; Flower makes the bytes of all before it sends the first.

    Raises:
        flwr's ObjectPushError: the server does not take one.
    """
    wanted = [object_id for object_id in objects if object_id in object_ids_to_push]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(wanted), _AT_ONCE):
            batch = wanted[start : start + _AT_ONCE]
            contents = [objects.pop(object_id).deflate() for object_id in batch]
            list(pool.map(push_object_fn, batch, contents))


class FleetNode:
    """A node of Flower's fleet.

    Attributes:
        node_id: Flower's number for this node.
    """

    def __init__(
        self, url: str, tls: ssl.SSLContext, node_key: Path, last_id: int | None = None
    ) -> None:
        """Activates the node, or goes on as the one that it was before its connection broke.

        Args:
            url: where the fleet API is, with its scheme.
            tls: with the node's certificate.
            node_key: the file of its P-256 key, in OpenSSH's form.
            last_id: the number it had; messages to it may be waiting.

        Raises:
            httpx.HTTPError: it cannot be reached, or does not know the key.
        """
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_ssh_private_key
        from flwr.proto.fleet_pb2 import ActivateNodeRequest
        from flwr.proto.node_pb2 import Node
        from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
        from flwr.supercore.primitives.asymmetric import public_key_to_bytes
        from flwr.supernode.fleet_http_client import FleetHttpClient
        from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

        private = load_ssh_private_key(node_key.read_bytes(), None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        public = private.public_key()
        self._client = FleetHttpClient(
            url,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, public),
            ],
            verify=tls,
        )
        carry_in_bulk(self._client, tls)
        wanted = ActivateNodeRequest(
            public_key=public_key_to_bytes(public), heartbeat_interval=HEARTBEAT_S
        )
        try:
            if last_id is None or not self._is_known(Node(node_id=last_id)):
                last_id = int(self._client.ActivateNode(wanted).node_id)
        except BaseException:
            self._client.close()
            raise
        self.node_id = last_id
        self._node = Node(node_id=last_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes the connections; takes the node out of the fleet, unless it was they that broke.

        A node whose connections broke comes back soon, and what waits for it is not lost.
        """
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        if not isinstance(error, httpx.TransportError):
            with contextlib.suppress(httpx.HTTPError):
                self._client.DeactivateNode(DeactivateNodeRequest(node_id=self.node_id))
        self._client.close()

    def context(self, run_id: int, config: Mapping[str, str]) -> Context:
        """Returns the context in which a ClientApp answers for this node; it keeps no state."""
        return Context(
            run_id=run_id,
            node_id=self.node_id,
            node_config=dict(config),
            state=RecordDict(),
            run_config={},
        )

    def beat(self) -> None:
        """Shows that the node is alive; due every `HEARTBEAT_S` seconds.

        Raises:
            httpx.HTTPError: the server cannot be reached.
        """
        self._beat(self._node)

    def receive(self) -> Message | None:
        """Returns the next message to this node, whole; None where there is none.

        Raises:
            httpx.HTTPError: the server cannot be reached.
            MalformedMessage: what came is no message.
        """
        from flwr.common.serde import message_from_proto
        from flwr.proto.fleet_pb2 import PullMessagesRequest
        from flwr.supercore.inflatable.inflatable_protobuf_utils import (
            make_pull_object_fn_protobuf,
        )
        from flwr.supercore.inflatable.inflatable_utils import ObjectPullError

        try:
            pulled = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if not pulled.messages_list:
                return None
            metadata = message_from_proto(pulled.messages_list[0]).metadata
            tree = pulled.message_object_trees[0]
        except (ValueError, TypeError, LookupError) as error:
            raise MalformedMessage("What the coordinator announces is no message.") from error
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, metadata.run_id)
        try:
            message = pull_message(metadata.message_id, tree, pull)
        except ObjectPullError:
            return None  # whoever announced it died before all of it was there
        except MalformedMessage:
            # It would be announced again for ever.
            self._confirm(metadata.run_id, metadata.message_id)
            raise
        self._confirm(metadata.run_id, metadata.message_id)
        return message

    def send(self, reply: Message, seconds: float) -> None:
        """Sends a reply; returns once the server holds all of it.

        Raises:
            httpx.HTTPError: the server cannot be reached, or does not want it any more.
        """
        from flwr.app.message import remove_content_from_message
        from flwr.common.serde import message_to_proto
        from flwr.proto.fleet_pb2 import PushMessagesRequest
        from flwr.supercore.inflatable.inflatable_object import (
            get_all_nested_objects,
            get_object_tree,
            no_object_id_recompute,
        )
        from flwr.supercore.inflatable.inflatable_protobuf_utils import (
            make_push_object_fn_protobuf,
        )

        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            pushed = self._client.PushMessages(
                PushMessagesRequest(
                    node=self._node,
                    messages_list=[message_to_proto(bare)],
                    message_object_trees=[tree],
                    clientapp_runtime_list=[seconds],
                )
            )
            push_bounded(
                objects,
                make_push_object_fn_protobuf(
                    self._client.PushObject, self._node, reply.metadata.run_id, pushed.session_id
                ),
                object_ids_to_push=set(pushed.objects_to_push),
            )

    def _confirm(self, run_id: int, message_id: str) -> None:
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        self._client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(
                node=self._node, run_id=run_id, message_object_id=message_id
            )
        )

    def _beat(self, node: "Node") -> bool:
        from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest

        beat = SendNodeHeartbeatRequest(node=node, heartbeat_interval=HEARTBEAT_S)
        return bool(self._client.SendNodeHeartbeat(beat).success)

    def _is_known(self, node: "Node") -> bool:
        """Says whether a SuperLink that knows this key knows it as that node."""
        try:
            return self._beat(node)
        except httpx.HTTPStatusError:
            return False
