"""A Flower Grid in one process: a queue of messages and some threads that answer them."""

import contextlib
import os
import queue
import sys
import threading
from collections.abc import Callable, Mapping

import torch
from flwr.app import Context, Message

from lepton_server.engines.simulated import (
    CLOSE_WAIT_S,
    NodeConfig,
    SimulatedGrid,
    lost,
    nobody_waits,
)

ClientApp = Callable[[Message, Context], Message]


# How long a thread waits for another that runs Python: by default 5 ms, longer than most tensor
# operations, after each of which a worker has to wait for it.
_SWITCH_S = 1e-4


class InProcessGrid(SimulatedGrid):
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
        super().__init__(nodes)
        sys.setswitchinterval(_SWITCH_S)
        self._app = client_app
        self._threads_per_site = threads_per_site
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._workers = [
            threading.Thread(target=self._work, name=f"lepton-worker-{index}", daemon=True)
            for index in range(workers or os.cpu_count() or 1)
        ]
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
            worker.join(CLOSE_WAIT_S)

    def _queue(self, messages: list[Message]) -> None:
        for message in messages:
            self._inbox.put(message)

    def _work(self) -> None:
        torch.set_num_threads(self._threads_per_site)
        while (message := self._inbox.get()) is not None:
            if nobody_waits(message):
                continue
            try:
                context = self._context(message.metadata.dst_node_id)
                reply = self._answer(message, context)
                self._keep(context.node_id, context.state)
                if not isinstance(reply, Message):
                    raise TypeError
            except BaseException:
                reply = lost(message)
            self._deliver(reply)

    def _answer(self, message: Message, context: Context) -> Message:
        return self._app(message, context)
