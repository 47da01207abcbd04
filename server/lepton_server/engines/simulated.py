"""What all grounds for simulation share: nodes, message ids, replies, and how a crash looks."""

import itertools
import logging
import queue
import sys
import time
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from flwr.app import Context, Error, Message, RecordDict

from lepton_common.errors import DiskFull, LeptonError
from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.run import empty_run
from lepton_common.flower.task_identity import speak_for
from lepton_server.grid import OwnGrid

if TYPE_CHECKING:
    from flwr.supercore.run import Run

NodeConfig = Mapping[str, str | int | float | bool]

CLOSE_WAIT_S = 5.0
_LOG = logging.getLogger("lepton.engine")
_SERVER_NODE = 1
_PULL_WAIT_S = 0.05
_APP_CRASHED = 8  # Flower's error code for a ClientApp process that died


class SimulatedGrid(OwnGrid):
    """A Flower Grid whose nodes are all on grounds of one's own.

    An engine says how messages are queued; from any thread it hands in replies.
    """

    def __init__(self, nodes: Mapping[int, NodeConfig]) -> None:
        """Knows the nodes.

        Args:
            nodes: node id (2 and above) -> the node's configuration; looked up, and never gone
                through, since there may be a million.
        """
        self._nodes = nodes
        self._states: dict[int, RecordDict] = {}
        self._run = empty_run(1)
        self._ids = itertools.count(1)
        self._outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._replies: dict[str, Message] = {}
        self._failure: LeptonError | None = None
        speak_for(self._run.run_id, _SERVER_NODE)

    @abstractmethod
    def close(self) -> None:
        """Drops what is queued and waits some seconds for messages at work to be answered."""

    @abstractmethod
    def _queue(self, messages: list[Message]) -> None:
        """Takes messages for nodes that there are, each with its id."""

    def set_run(self, run: "Run") -> None:
        """Sets the run that messages belong to."""
        self._run = run
        speak_for(run.run_id, _SERVER_NODE)

    @property
    def run(self) -> "Run":
        """The run that messages belong to."""
        return self._run

    def get_node_ids(self) -> Iterable[int]:
        """Returns all node ids."""
        return self._nodes.keys()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queues messages for their nodes and returns their ids.

        Raises:
            ValueError: there is no such node.
            LeptonError: the engine has failed.
        """
        self._check()
        batch = list(messages)
        for message in batch:
            if message.metadata.dst_node_id not in self._nodes:
                raise ValueError(f"There is no node {message.metadata.dst_node_id}.")
        for message in batch:
            assign_message_id(message, f"message-{next(self._ids)}")
        ids = [message.metadata.message_id for message in batch]
        self._queue(batch)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, waiting up to 50 ms for the first one.

        Raises:
            LeptonError: the engine has failed.
        """
        wanted = set(message_ids)
        found = wanted & self._replies.keys()
        try:
            while True:
                reply = self._outbox.get(timeout=0 if found else _PULL_WAIT_S)
                self._replies[reply.metadata.reply_to_message_id] = reply
                found = wanted & self._replies.keys()
        except queue.Empty:
            pass
        self._check()
        arrived = [message_id for message_id in self._replies if message_id in found]
        return [self._replies.pop(message_id) for message_id in arrived]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages and returns the replies that came within ``timeout`` seconds.

        Raises:
            ValueError, LeptonError: as `push_messages`.
        """
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.remove(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _fail(self, error: LeptonError) -> None:
        """Lets the server's next call end in an error, when nothing is to be hoped for."""
        self._failure = self._failure or error

    def _deliver(self, reply: Message) -> None:
        if reply.has_error() and reply.error.reason == DiskFull.__name__:
            # The other sites have no room either: their folders are on the grounds' one disk.
            said = "No room is left on the disk of a simulated site: make room there."
            self._fail(DiskFull(said))
        self._outbox.put(reply)

    def _context(self, node: int) -> Context:
        """Returns what a node's app is given beside a message; see `_keep`.

        Raises:
            DiskFull: there is no room to make the node; the engine has failed.
        """
        try:
            config = dict(self._nodes[node])
        except DiskFull as error:
            self._fail(error)
            raise
        return Context(
            run_id=self._run.run_id,
            node_id=node,
            node_config=config,
            state=self._states.get(node, RecordDict()),
            run_config={},
        )

    def _keep(self, node: int, state: RecordDict) -> None:
        """Keeps a node's state from one message to the next, if its app has left any."""
        if state:
            self._states[node] = state
        else:
            self._states.pop(node, None)


def nobody_waits(message: Message) -> bool:
    """Returns whether a message is too old for its answer, on which a site should not spend."""
    metadata = message.metadata
    return time.time() > metadata.created_at + metadata.ttl


def lost(message: Message) -> Message:
    """Logs the exception that is being handled, with its trace, and returns what `crashed` does.

    A site's own app answers by an error's name and keeps its text; what comes here went wrong
    around it, on the grounds of whoever runs the simulation.
    """
    told = message.metadata
    if not isinstance(sys.exception(), DiskFull):  # which the engine tells by failing
        _LOG.exception("Node %d did not answer %s.", told.dst_node_id, told.message_type)
    return crashed(message)


def crashed(message: Message) -> Message:
    """Returns what Flower answers for a ClientApp process that died."""
    return Message(Error(_APP_CRASHED, "ClientAppCrashed"), reply_to=message)
