"""Messages and contexts as the bytes that Flower puts on the network, and back."""

from flwr.app import Context, Message


def to_wire(message: Message) -> bytes:
    """Returns the protobuf bytes of ``message``."""
    from flwr.common.serde import message_to_proto

    data: bytes = message_to_proto(message).SerializeToString(deterministic=True)
    return data


def from_wire(data: bytes) -> Message:
    """Returns the message in ``data``."""
    from flwr.common.serde import message_from_proto
    from flwr.proto.message_pb2 import Message as ProtoMessage

    return message_from_proto(ProtoMessage.FromString(data))


def context_to_wire(context: Context) -> bytes:
    """Returns the protobuf bytes of ``context``."""
    from flwr.common.serde import context_to_proto

    data: bytes = context_to_proto(context).SerializeToString(deterministic=True)
    return data


def context_from_wire(data: bytes) -> Context:
    """Returns the context in ``data``."""
    from flwr.common.serde import context_from_proto
    from flwr.proto.message_pb2 import Context as ProtoContext

    return context_from_proto(ProtoContext.FromString(data))
