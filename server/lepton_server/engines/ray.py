"""A Flower Grid over Flower's Ray backend, on one machine or on a running cluster."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from flwr.app import Message

from lepton_common.flower.ray_backend import Carried, RayActors
from lepton_server.engines.serving import Serving
from lepton_server.engines.simulated import (
    CLOSE_WAIT_S,
    NodeConfig,
    SimulatedGrid,
    crashed,
    lost,
    nobody_waits,
)
from lepton_server.engines.waiting import Waiting


@dataclass(frozen=True)
class Load:
    """Gives an actor the app; sent to it by Ray, as a name and three values.

    Attributes:
        app: see `Serving`.
        forget: likewise.
        threads_per_site: likewise.
    """

    app: str
    forget: str | None
    threads_per_site: int

    def __call__(self) -> "Served":
        """Returns the app, the same one in a process every time."""
        return _load(self)


class Served:
    """The app as Flower's actor calls it."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving

    def __call__(self, message: Message, context: Carried) -> Message:
        """Answers one message."""
        return self._serving.answer(message, context.context, context.turn)


@lru_cache(maxsize=1)
def _load(load: Load) -> Served:
    return Served(Serving(load.app, load.forget, load.threads_per_site))


class RayGrid(SimulatedGrid):
    """Runs a ClientApp for many nodes, each message in whichever of Flower's actors is free.

    What a node keeps on disk must be found under the same path by all machines of a cluster.
    """

    def __init__(
        self,
        client_app: str,
        nodes: Mapping[int, NodeConfig],
        *,
        workers: int = 0,
        threads_per_site: int = 1,
        forget: str | None = None,
        address: str | None = None,
    ) -> None:
        """Starts Ray, or joins a cluster.

        Args:
            client_app: ``module:attribute`` of the app of every node, imported in each actor.
            nodes: node id (2 and above) -> the node's configuration.
            workers: nodes answered at the same time; 0 for as many as there is room for.
            threads_per_site: intra-op threads of each actor, which takes as many processors.
            forget: likewise of a function that drops what a process keeps of the node whose
                context it is given, because another process has served it since.
            address: of a running cluster, or ``auto``; None: this machine.

        Raises:
            RayMissing: Ray is not installed.
            RayUnreachable: there is no such cluster, or no room in it.
        """
        super().__init__(nodes)
        self._waiting: Waiting[Message] = Waiting(keep=False)
        self._closing = False
        self._actors = RayActors(
            Load(client_app, forget, threads_per_site),
            address=address,
            workers=workers or max(1, (os.cpu_count() or 1) // threads_per_site),
            cpus=threads_per_site,
        )
        # Flower's pool takes no more messages at a time than it has actors.
        askers = min(workers or self._actors.size, self._actors.size)
        self._threads = [
            threading.Thread(target=self._work, args=(index,), daemon=True)
            for index in range(askers)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Drops what is queued, waits some seconds for messages at work, and ends the actors."""
        self._closing = True
        self._waiting.close()
        for thread in self._threads:
            thread.join(CLOSE_WAIT_S)
        self._actors.close()

    def _queue(self, messages: list[Message]) -> None:
        self._waiting.put((message.metadata.dst_node_id, message) for message in messages)

    def _work(self, index: int) -> None:
        while (turn := self._waiting.take(index)) is not None:
            try:
                if nobody_waits(turn.asked):
                    continue
                context = self._context(turn.node)
                reply, after = self._actors.answer(turn.asked, context, turn.number)
                self._keep(turn.node, after.state)
            except Exception:
                # At the end Ray is taken away from under what is still at work.
                reply = crashed(turn.asked) if self._closing else lost(turn.asked)
            finally:
                self._waiting.done(index)
            self._deliver(reply)
