"""Flower's fleet API, as a site's agent speaks it: one node that asks, answers and shows life.

Flower's own SuperNode polls every three seconds and starts a fresh Python for each message; its
client code is used here without its loop.
"""

import contextlib
import ssl
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import httpx
from flwr.app import Context, Message, RecordDict

from lepton_common.errors import MalformedMessage
from lepton_common.flower.bulk_transport import carry_in_bulk
from lepton_common.flower.parcel import Parcel
from lepton_common.flower.received import pull_message

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import Node
    from flwr.supercore.inflatable.inflatable_object import InflatableObject

Asked = TypeVar("Asked")
Said = TypeVar("Said")
HEARTBEAT_S = 30.0
_AT_ONCE = 2
# So long a transfer goes on trying over broken connections without any progress.
_PATIENCE_S, _FIRST_WAIT_S, _LONGEST_WAIT_S = 30.0, 0.1, 2.0


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
    _push_each(wanted, lambda object_id: objects.pop(object_id).deflate(), push_object_fn)


def _push_each(
    names: list[str], content: Callable[[str], bytes], push: Callable[[str, bytes], None]
) -> None:
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for start in range(0, len(names), _AT_ONCE):
            batch = names[start : start + _AT_ONCE]
            list(pool.map(push, batch, [content(name) for name in batch]))


class FleetNode:
    """A node of Flower's fleet.

    Attributes:
        node_id: Flower's number for this node.
    """

    def __init__(
        self,
        url: str,
        tls: ssl.SSLContext,
        node_key: Path,
        last_id: int | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        """Activates the node, or goes on as the one that it was before its connection broke.

        Args:
            url: where the fleet API is, with its scheme.
            tls: with the node's certificate.
            node_key: the file of its P-256 key, in OpenSSH's form.
            last_id: the number it had; messages to it may be waiting.
            stopped: whether to go on trying no more where a connection breaks.

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
        self.node_id, self._stopped = last_id, stopped
        self._node = Node(node_id=last_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Closes the connections; takes the node out of the fleet, unless it was they that broke.

        A node whose connections broke comes back soon, and what waits for it is not lost.
        """
        from flwr.proto.fleet_pb2 import DeactivateNodeRequest

        if not isinstance(error, httpx.HTTPError | OSError):
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

    def receive(self, answered: Callable[[str], bool]) -> Message | None:
        """Returns the next message to this node, whole; None where there is none.

        A pull that breaks off goes on where it was; and what is not confirmed is announced again.

        Args:
            answered: whether a message was answered before; such are confirmed, and not given.

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
        if answered(metadata.message_id):
            self._confirm(metadata.run_id, metadata.message_id)
            return None  # what is new is announced before what is announced again
        pull = make_pull_object_fn_protobuf(
            partial(self._patiently, self._client.PullObject), self._node, metadata.run_id
        )
        try:
            message = pull_message(metadata.message_id, tree, pull)
        except ObjectPullError:
            return None  # whoever announced it died before all of it was there
        except MalformedMessage:
            # It would be announced again for ever.
            self._confirm(metadata.run_id, metadata.message_id)
            raise
        with contextlib.suppress(httpx.TransportError):  # then it is announced again
            self._confirm(metadata.run_id, metadata.message_id)
        return message

    def send(self, parcel: Parcel) -> None:
        """Sends a reply; returns once the server holds all of it, or does not want it any more.

        What the server has of it already is not sent again, and two times the same are one.

        Raises:
            httpx.HTTPError: the server cannot be reached, or has no such run any more.
            ConnectionError: the server takes no more of it.
        """
        from flwr.supercore.inflatable.inflatable_protobuf_utils import (
            make_push_object_fn_protobuf,
        )
        from flwr.supercore.inflatable.inflatable_utils import ObjectPushError

        waits, least = _Waits(self._stopped), len(parcel.names) + 1
        while True:
            pushed = self._patiently(self._client.PushMessages, parcel.announced(self.node_id))
            missing = [name for name in parcel.names if name in set(pushed.objects_to_push)]
            if not missing:
                return
            if len(missing) < least:
                waits, least = _Waits(self._stopped), len(missing)
            push = make_push_object_fn_protobuf(
                partial(self._patiently, self._client.PushObject),
                self._node,
                parcel.run_id,
                pushed.session_id,
            )
            try:
                _push_each(missing, parcel.content, push)
            except ObjectPushError:
                # It has that one, and its word of it was lost; or it began to wait anew, or has
                # no room. It says itself what is missing.
                if not waits.again():
                    raise ConnectionError("The coordinator takes no more of an answer.") from None
            else:
                return

    def _patiently(self, call: Callable[[Asked], Said], asked: Asked) -> Said:
        """Calls, and again where the connection breaks: such calls may come twice."""
        waits = _Waits(self._stopped)
        while True:
            try:
                return call(asked)
            except httpx.TransportError:
                if not waits.again():
                    raise

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


class _Waits:
    """Ever longer waits between tries, for some time in all since the first that failed."""

    def __init__(self, stopped: Callable[[], bool]) -> None:
        self._stopped, self._wait_s = stopped, _FIRST_WAIT_S
        self._until: float | None = None

    def again(self) -> bool:
        """Waits, and says whether to try once more."""
        now = time.monotonic()
        self._until = self._until or now + _PATIENCE_S
        if now + self._wait_s > self._until:
            return False
        while not self._stopped() and time.monotonic() < now + self._wait_s:
            time.sleep(_FIRST_WAIT_S / 2)
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        return not self._stopped()
