"""Gives a message its id, as a SuperLink does when it takes one in."""

from flwr.app import Message


def assign_message_id(message: Message, message_id: str) -> None:
    """Sets ``message.metadata.message_id``, which has no public setter."""
    message.metadata.__dict__["_message_id"] = message_id
