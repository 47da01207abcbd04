"""Flower's own word that no reply will come, and why: told apart from what a site answers."""

from flwr.app import Error, Message


def why_lost(error: Error) -> str | None:
    """Returns ``TimedOut`` or ``NodeUnavailable``; None for an error of any other kind."""
    from flwr.common.constant import ErrorCode
    from flwr.server.superlink.linkstate.utils import MESSAGE_UNAVAILABLE_ERROR_REASON

    if error.code == ErrorCode.NODE_UNAVAILABLE:
        return "NodeUnavailable"
    expired = error.code == ErrorCode.REPLY_MESSAGE_UNAVAILABLE or (
        # The grid uses this code too, for a reply that came and cannot be read.
        error.code == ErrorCode.MESSAGE_UNAVAILABLE
        and error.reason == MESSAGE_UNAVAILABLE_ERROR_REASON
    )
    return "TimedOut" if expired else None


def expired(message_id: str, run_id: int) -> Message:
    """Returns what a SuperLink answers who asks for the reply to an expired or unknown message."""
    from flwr.server.superlink.linkstate.utils import create_message_error_unavailable_ins_message

    answer: Message = create_message_error_unavailable_ins_message(message_id, run_id)
    return answer
