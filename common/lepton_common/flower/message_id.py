"""Gives a message its id, as a SuperLink does when it takes one in."""

from flwr.app import Error, Message, RecordDict


def assign_message_id(message: Message, message_id: str) -> None:
    """Sets ``message.metadata.message_id``, which has no public setter."""
    message.metadata.__dict__["_message_id"] = message_id


def with_error(reply: Message, error: Error) -> Message:
    """Returns a reply with an error in the place of its content."""
    from flwr.app.message import make_message

    changed: Message = make_message(metadata=reply.metadata, error=error)
    return changed


def with_content(message: Message, content: RecordDict) -> Message:
    """Returns a message that says something else, with the same metadata."""
    from flwr.app.message import make_message

    changed: Message = make_message(metadata=message.metadata, content=content)
    return changed
