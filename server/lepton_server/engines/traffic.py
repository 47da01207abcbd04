"""What the messages of a run tell of its rounds: how many, how many failed, how long."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from flwr.app import ConfigRecord, Message

_ROUND = "server-round"  # where Flower's strategies name the round


@dataclass
class Exchange:
    """All messages of one type in one round.

    Attributes:
        round: the round that the messages name; None where they name none, and an exchange is
            over once none of them is under way.
        type: the message type: ``train``, ``evaluate``, ``query.name``.
        sent: messages sent.
        answered: replies with content.
        failed: errors, and messages without a reply in time.
        seconds: how long at least one of the messages was under way.
    """

    round: int | None
    type: str
    sent: int = 0
    answered: int = 0
    failed: int = 0
    seconds: float = 0.0
    began: float = field(default=0.0, repr=False)

    @property
    def under_way(self) -> int:
        """Messages that wait for their reply."""
        return self.sent - self.answered - self.failed


class Traffic:
    """Counts messages by round and type, in the order in which they were first sent."""

    def __init__(self) -> None:
        self._exchanges: list[Exchange] = []
        self._newest: dict[tuple[int | None, str], Exchange] = {}
        self._of: dict[str, Exchange] = {}

    def sent(self, ids: Sequence[str], messages: Sequence[Message]) -> None:
        """Counts messages that were sent under these ids."""
        for message_id, message in zip(ids, messages, strict=True):
            key = (_round(message), message.metadata.message_type)
            exchange = self._newest.get(key)
            if exchange is None or (exchange.round is None and not exchange.under_way):
                exchange = self._newest[key] = Exchange(*key)
                self._exchanges.append(exchange)
            if not exchange.under_way:
                exchange.began = time.monotonic()
            exchange.sent += 1
            self._of[message_id] = exchange

    def answered(self, message_id: str, *, failed: bool) -> None:
        """Counts an answer, or that none will be waited for; once for each message."""
        exchange = self._of.pop(message_id, None)
        if exchange is None:
            return
        if failed:
            exchange.failed += 1
        else:
            exchange.answered += 1
        if not exchange.under_way:
            exchange.seconds += time.monotonic() - exchange.began

    @property
    def exchanges(self) -> list[Exchange]:
        """All exchanges so far; those under way with their time until now."""
        now = time.monotonic()
        return [
            Exchange(
                each.round,
                each.type,
                each.sent,
                each.answered,
                each.failed,
                each.seconds + (now - each.began if each.under_way else 0.0),
            )
            for each in self._exchanges
        ]


def _round(message: Message) -> int | None:
    """Returns the round that a message names, in its group or in a config of Flower's."""
    group = message.metadata.group_id
    if group.isdecimal():
        return int(group)
    if not message.has_content():
        return None
    for record in message.content.values():
        found = record.get(_ROUND) if isinstance(record, ConfigRecord) else None
        if isinstance(found, int):
            return found
    return None
