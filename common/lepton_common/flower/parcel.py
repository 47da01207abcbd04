"""A reply in Flower's pieces, which can be sent, kept as bytes, and sent again the same."""

from collections.abc import Callable
from typing import Self

from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import DecodeError

from lepton_common.errors import MalformedMessage


class Parcel:
    """A reply that is on its way.

    Attributes:
        message_id: the reply's, made of its content.
        reply_to: the id of what it answers.
        run_id: Flower's number of the run.
        until: when nobody waits for it any more, in seconds since 1970.
        names: ids of the objects that it is made of, those inside others first.
    """

    def __init__(self, announcement: bytes, content: Callable[[str], bytes]) -> None:
        """Takes a reply's pieces.

        Args:
            announcement: what `announcement` returned.
            content: returns the bytes of an object by its id, as often as it is asked.

        Raises:
            MalformedMessage: that is no announcement.
        """
        try:
            self._request = PushMessagesRequest.FromString(announcement)
            (message,), (tree,) = self._request.messages_list, self._request.message_object_trees
        except (DecodeError, ValueError):
            raise MalformedMessage("What was kept announces no reply.") from None
        said = message.metadata
        self.message_id, self.reply_to = said.message_id, said.reply_to_message_id
        self.run_id, self.until = int(said.run_id), said.created_at + said.ttl
        self.names = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
        self.content = content

    @classmethod
    def of(cls, reply: Message, seconds: float) -> Self:
        """Takes a reply apart.

        Args:
            reply: an answer.
            seconds: that it took to find.
        """
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects, tree = get_all_nested_objects(reply), get_object_tree(reply)
            bare = remove_content_from_message(reply) if reply.has_content() else reply
            request = PushMessagesRequest(
                messages_list=[message_to_proto(bare)],
                message_object_trees=[tree],
                clientapp_runtime_list=[seconds],
            )
            # Those that hold others are small; only the others' bytes are made when asked for.
            holding = {name: one.deflate() for name, one in objects.items() if one.children}

        def content(name: str) -> bytes:
            return holding[name] if name in holding else objects[name].deflate()

        return cls(request.SerializeToString(deterministic=True), content)

    @property
    def announcement(self) -> bytes:
        """All of it but the contents of its objects."""
        announced: bytes = self._request.SerializeToString(deterministic=True)
        return announced

    def announced(self, node_id: int) -> PushMessagesRequest:
        """Returns what a node tells the server of the reply."""
        request = PushMessagesRequest(node=Node(node_id=node_id))
        request.MergeFrom(self._request)
        return request
