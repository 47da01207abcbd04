"""Asks some nodes and yields their answers as they come, within a bounded time."""

import re
import time
from collections.abc import Iterator, Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from lepton_common.flower.lost import why_lost

MALFORMED = "MalformedReply"
TIMED_OUT = "TimedOut"
WRONG_SENDER = "WrongSender"
_POLL_S = 0.005
_FLOWER = 1  # node id under which a SuperLink reports that a node is gone


def collect(
    grid: Grid, contents: Mapping[int, RecordDict], message_type: str, timeout_s: float
) -> Iterator[tuple[int, RecordDict | str]]:
    """Sends each node its content, at once; returns (node, answer) in order of arrival.

    An answer is the reply's records, or the name of what went wrong: the site's own error name,
    ``TimedOut``, ``NodeUnavailable``, ``WrongSender`` or ``MalformedReply``. Each node answers
    exactly once.
    """
    messages = [
        Message(content, dst_node_id=node, message_type=message_type, ttl=timeout_s)
        for node, content in contents.items()
    ]
    waiting = dict(zip(grid.push_messages(messages), contents, strict=True))
    return _answers(grid, waiting, time.monotonic() + timeout_s)


def _answers(
    grid: Grid, waiting: dict[str, int], deadline: float
) -> Iterator[tuple[int, RecordDict | str]]:
    while waiting:
        late = time.monotonic() >= deadline
        came = False
        for reply in grid.pull_messages(list(waiting)):
            came = True
            # By what it answers, not by who it claims to be from: a SuperLink reports a lost
            # node under its own id.
            node = waiting.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                yield node, _answer(reply, node)
            del reply  # before the next is taken
        if not came:
            # What had arrived by then counts, even where taking the others' answers took long.
            if late:
                break
            time.sleep(_POLL_S)
    for node in waiting.values():
        yield node, TIMED_OUT


def _answer(reply: Message, node: int) -> RecordDict | str:
    if reply.metadata.src_node_id not in (node, _FLOWER):
        return WRONG_SENDER
    if reply.has_error():
        if reply.metadata.src_node_id == _FLOWER and (lost := why_lost(reply.error)):
            return lost
        # A name, and nothing that a terminal or a report could take for more.
        reason = str(reply.error.reason)
        return reason if re.fullmatch(r"[A-Za-z][A-Za-z0-9]{0,63}", reason) else MALFORMED
    return reply.content if reply.metadata.src_node_id == node else WRONG_SENDER
