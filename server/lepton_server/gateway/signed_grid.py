"""A grid that passes on only replies which the asked site has signed, and wakes whom it asks."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from flwr.app import Error, Message
from flwr.serverapp import Grid

from lepton_common.errors import BadSignature
from lepton_common.flower.message_id import with_error
from lepton_common.identity.sealed import take_signature
from lepton_server.gateway.nodes import KnownNode
from lepton_server.grid import OwnGrid

if TYPE_CHECKING:
    from flwr.supercore.run import Run

Wake = Callable[[Iterable[str]], None]
_REFUSED = 100
# Between looks: a share of the time waited so far, within bounds.
_LOOK_S, _LOOK_SHARE, _LONGEST_LOOK_S = 0.05, 0.03, 0.5


class SignedGrid(OwnGrid):
    """Flower's grid, with the roster's keys held against each reply, and sites woken up."""

    def __init__(self, grid: Grid, nodes: Mapping[int, KnownNode], wake: Wake) -> None:
        """Wraps a grid.

        Args:
            grid: Flower's.
            nodes: the sites that may answer, by Flower's number.
            wake: told the names of the sites for which messages wait.
        """
        self._grid, self._nodes, self._wake = grid, nodes, wake
        self._asked: dict[str, int] = {}
        self._next_look = self._pushed_at = 0.0

    def set_run(self, run: "Run") -> None:
        """Sets the run that messages belong to."""
        self._grid.set_run(run)

    @property
    def run(self) -> "Run":
        """The run that messages belong to."""
        return self._grid.run

    def get_node_ids(self) -> Iterable[int]:
        """Returns the nodes that are there and that the roster knows."""
        return [node for node in self._grid.get_node_ids() if node in self._nodes]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids."""
        batch = list(messages)
        ids = list(self._grid.push_messages(batch))
        for message_id, message in zip(ids, batch, strict=True):
            self._asked[message_id] = message.metadata.dst_node_id
        self._pushed_at = time.monotonic()
        asked = {message.metadata.dst_node_id for message in batch}
        self._wake(self._nodes[node].name for node in asked & set(self._nodes))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """Yields the replies that are there; one that its site did not sign is an error."""
        # Whoever asks at once again would keep the SuperLink from its work.
        time.sleep(max(0.0, self._next_look - time.monotonic()))
        now = time.monotonic()
        wait_s = min(max(_LOOK_S, _LOOK_SHARE * (now - self._pushed_at)), _LONGEST_LOOK_S)
        self._next_look = now + wait_s
        self._wake(())  # nobody; but we are alive
        yield from map(self._checked, self._grid.pull_messages(list(message_ids)))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages and returns the replies that came within ``timeout`` seconds."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _checked(self, reply: Message) -> Message:
        if not reply.has_content():
            return reply
        node = self._asked.get(reply.metadata.reply_to_message_id)
        known = self._nodes.get(node) if node is not None else None
        if known is not None and take_signature(reply, known.public_key):
            return reply
        return with_error(reply, Error(_REFUSED, BadSignature.__name__))
