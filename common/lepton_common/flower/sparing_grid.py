"""Flower's grid, but that it takes replies one by one: at no time are two of them in memory."""

from collections.abc import Iterable, Iterator

from flwr.app import ArrayRecord, Error, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.runtime_pb2 import PullAppMessagesRequest
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.superlink.grid import HttpGrid

from lepton_common.errors import MalformedMessage
from lepton_common.flower.message_id import with_error
from lepton_common.flower.received import pull_message

LOST = "ReplyLost"
# No array in a reply is larger than this, or than so many times the largest that was sent.
_LARGEST_ARRAY, _TIMES = 1 << 26, 4


class SparingGrid(HttpGrid):
    """Pulls a reply when it is asked for, and not before the last was dealt with."""

    _most = _LARGEST_ARRAY

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        batch = list(messages)
        sent = [
            len(array.data)
            for message in batch
            if message.has_content()
            for record in message.content.values()
            if isinstance(record, ArrayRecord)
            for array in record.values()
        ]
        self._most = max(self._most, _TIMES * max(sent, default=0))
        return super().push_messages(batch)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yields the replies that are there; what is none, or came in part only, is an error."""
        asked = PullAppMessagesRequest(message_ids=list(message_ids))
        pulled = self._runtime_client.PullMessages(asked)
        for announced, tree in zip(pulled.messages_list, pulled.message_object_trees, strict=True):
            reply = self._reply(announced, tree)
            # Also of what cannot be read: it would be announced again for ever.
            self._runtime_client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=self.node,
                    run_id=self.run.run_id,
                    message_object_id=announced.metadata.message_id,
                )
            )
            yield reply
            del reply

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Is not to be had: Flower's goes over the replies twice, and here each comes once.

        Raises:
            NotImplementedError: always; `SignedGrid`, around this, has one that works.
        """
        raise NotImplementedError

    def _reply(self, announced: ProtoMessage, tree: ObjectTree) -> Message:
        pull = make_pull_object_fn_protobuf(
            self._runtime_client.PullObject, self.node, self.run.run_id
        )
        try:
            return pull_message(announced.metadata.message_id, tree, pull, self._most)
        except (ObjectPullError, MalformedMessage):
            lost = Error(ErrorCode.MESSAGE_UNAVAILABLE, LOST)
            return with_error(message_from_proto(announced), lost)
