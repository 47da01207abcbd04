"""Messages as the bytes that Flower puts on the network, and back."""

from flwr.app import Message


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
