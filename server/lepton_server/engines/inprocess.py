"""A Flower Grid in one process: a queue of messages and some threads that answer them."""

import contextlib
import itertools
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from lepton_common.flower.message_id import assign_message_id
from lepton_common.flower.run import empty_run
from lepton_common.flower.task_identity import speak_for

if TYPE_CHECKING:
    from flwr.supercore.run import Run

ClientApp = Callable[[Message, Context], Message]
NodeConfig = Mapping[str, str | int | float | bool]

_SERVER_NODE = 1
_PULL_WAIT_S = 0.05
_CLOSE_WAIT_S = 5.0
_APP_CRASHED = 8  # Flower's error code for a ClientApp process that died


class InProcessGrid(Grid):
    """Runs a ClientApp for many nodes, passing messages by reference.

    A message is answered by the first free worker. Intra-op threads are set per worker, so a
    node's arithmetic does not depend on how many workers there are.
    """

    def __init__(
        self,
        client_app: ClientApp,
        nodes: Mapping[int, NodeConfig],
        *,
        workers: int = 1,
        threads_per_site: int = 1,
    ) -> None:
        """Starts the workers.

        Args:
            client_app: the app of every node.
            nodes: node id (2 and above) -> the node's configuration, which is asked for when a
                message for the node is answered, and from several threads.
            workers: nodes answered at the same time; 0 for one per core.
            threads_per_site: intra-op threads of each worker.
        """
        self._app, self._nodes = client_app, nodes  # no copy: there may be a million
        self._threads_per_site = threads_per_site
        self._states: dict[int, RecordDict] = {}  # of nodes whose apps keep something
        self._run = empty_run(1)
        self._ids = itertools.count(1)
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._replies: dict[str, Message] = {}
        self._workers = [
            threading.Thread(target=self._work, name=f"lepton-worker-{index}", daemon=True)
            for index in range(workers or os.cpu_count() or 1)
        ]
        speak_for(self._run.run_id, _SERVER_NODE)
        for worker in self._workers:
            worker.start()

    def close(self) -> None:
        """Drops what is queued and waits some seconds for messages at work to be answered."""
        with contextlib.suppress(queue.Empty):
            while True:
                self._inbox.get_nowait()
        for _ in self._workers:
            self._inbox.put(None)
        for worker in self._workers:
            worker.join(_CLOSE_WAIT_S)

    def set_run(self, run: "Run") -> None:
        """Sets the run that messages belong to."""
        self._run = run
        speak_for(run.run_id, _SERVER_NODE)

    @property
    def run(self) -> "Run":
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Returns a message to a node; Flower's older way to make one."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Returns all node ids."""
        return self._nodes.keys()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queues messages for their nodes and returns their ids.

        Raises:
            ValueError: there is no such node.
        """
        batch = list(messages)
        for message in batch:
            if message.metadata.dst_node_id not in self._nodes:
                raise ValueError(f"There is no node {message.metadata.dst_node_id}.")
        ids = []
        for message in batch:
            assign_message_id(message, f"message-{next(self._ids)}")
            ids.append(message.metadata.message_id)
            self._inbox.put(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, waiting up to 50 ms for the first one."""
        wanted = set(message_ids)
        found = wanted & self._replies.keys()
        try:
            while True:
                reply = self._outbox.get(timeout=0 if found else _PULL_WAIT_S)
                self._replies[reply.metadata.reply_to_message_id] = reply
                found = wanted & self._replies.keys()
        except queue.Empty:
            pass
        arrived = [message_id for message_id in self._replies if message_id in found]
        return [self._replies.pop(message_id) for message_id in arrived]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Sends messages and returns the replies that came within ``timeout`` seconds."""
        waiting = set(self.push_messages(messages))
        deadline = None if timeout is None else time.monotonic() + timeout
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            for reply in self.pull_messages(waiting):
                waiting.remove(reply.metadata.reply_to_message_id)
                replies.append(reply)
        return replies

    def _work(self) -> None:
        torch.set_num_threads(self._threads_per_site)
        while (message := self._inbox.get()) is not None:
            metadata = message.metadata
            if time.time() > metadata.created_at + metadata.ttl:
                continue  # nobody waits for the answer, so a site should not spend on it
            node = metadata.dst_node_id
            state = self._states.setdefault(node, RecordDict())
            try:
                context = Context(
                    run_id=self._run.run_id,
                    node_id=node,
                    node_config=dict(self._nodes[node]),  # which may make a simulated site
                    state=state,
                    run_config={},
                )
                reply = self._answer(message, context)
                if not isinstance(reply, Message):
                    raise TypeError
            except BaseException:
                # As Flower answers for a ClientApp process that died; the app itself never
                # raises.
                reply = Message(Error(_APP_CRASHED, "ClientAppCrashed"), reply_to=message)
            if state:
                self._states[node] = state
            else:
                self._states.pop(node, None)
            self._outbox.put(reply)

    def _answer(self, message: Message, context: Context) -> Message:
        return self._app(message, context)
