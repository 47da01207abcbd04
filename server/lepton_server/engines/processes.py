"""A Flower Grid of worker processes on one machine, which share a round's model in memory."""

import itertools
import logging
import os
import threading
import time
from collections.abc import Mapping

from flwr.app import Message

from lepton_common.errors import WorkerFailed
from lepton_common.flower.lifting import lift
from lepton_server.engines.channel import MOST_FILES
from lepton_server.engines.shared_memory import Segment
from lepton_server.engines.simulated import (
    CLOSE_WAIT_S,
    NodeConfig,
    SimulatedGrid,
    crashed,
    nobody_waits,
)
from lepton_server.engines.waiting import Turn, Waiting
from lepton_server.engines.worker_process import Asked, Work, WorkerProcess, visible_gpus

_LOG = logging.getLogger("lepton.engine")
MOST_SEGMENTS = 400
"""Segments at a time; each is an open file, of which many systems allow a process 1,024.

What has no room goes inside its message.
"""


class ProcessesGrid(SimulatedGrid):
    """Runs a ClientApp for many nodes, each message in one of some processes.

    The large arrays that the messages of one push have in common are written once, into shared
    memory that workers map for reading. A node stays with the worker that served it, unless
    another one has nothing to do. A worker that dies is started again, and what it worked on
    counts as Flower counts an app that died.
    """

    def __init__(
        self,
        client_app: str,
        nodes: Mapping[int, NodeConfig],
        *,
        workers: int = 1,
        threads_per_site: int = 1,
        forget: str | None = None,
    ) -> None:
        """Starts the workers, and does not wait for them: that they cannot start shows later.

        Args:
            client_app: ``module:attribute`` of the app of every node, imported in each worker.
            nodes: node id (2 and above) -> the node's configuration.
            workers: nodes answered at the same time; 0 for one per core. Where there are GPUs,
                each worker sees one of them, in turn.
            threads_per_site: intra-op threads of each worker.
            forget: likewise of a function that drops what a process keeps of the node whose
                context it is given, because another process has served it since.
        """
        super().__init__(nodes)
        self._task = Work(client_app, forget, threads_per_site)
        self._gpus = visible_gpus()
        self._waiting: Waiting[Asked] = Waiting(keep=True)
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._closing, self._open = False, 0
        self._running: dict[int, WorkerProcess] = {}
        self._threads = [
            threading.Thread(
                target=self._work, args=(index,), name=f"lepton-worker-{index}", daemon=True
            )
            for index in range(workers or os.cpu_count() or 1)
        ]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Drops what is queued, waits some seconds for messages at work, and ends the workers."""
        with self._lock:
            self._closing = True
            for worker in self._running.values():
                if not worker.ready:
                    worker.kill()
        for asked in self._waiting.close():
            self._release(asked)
        deadline = time.monotonic() + CLOSE_WAIT_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            for worker in self._running.values():
                worker.kill()
        for thread in self._threads:
            thread.join(CLOSE_WAIT_S)

    def _queue(self, messages: list[Message]) -> None:
        segments: dict[tuple[tuple[str, int], ...], Segment] = {}
        batch = []
        for message in messages:
            lean, lifted = lift(message)
            same = {
                key: tuple((name, id(data)) for name, data in arrays)
                for key, arrays in lifted.items()
            }
            new = set(same.values()) - segments.keys()
            if len(lifted) > MOST_FILES or not self._room(len(new)):
                lean, lifted = message, {}
            asked = Asked(lean, {})
            for key, arrays in lifted.items():
                if same[key] not in segments:
                    segments[same[key]] = Segment(next(self._numbers), arrays)
                asked.segments[key] = segments[same[key]]
            batch.append((message.metadata.dst_node_id, asked))
        with self._lock:
            for _, asked in batch:
                for segment in asked.segments.values():
                    segment.hold()
        self._waiting.put(batch)

    def _room(self, new: int) -> bool:
        """Takes room for some segments, unless there is none."""
        with self._lock:
            if self._open + new > MOST_SEGMENTS:
                return False
            self._open += new
            return True

    def _release(self, asked: Asked) -> None:
        with self._lock:
            for segment in asked.segments.values():
                self._open -= segment.release()

    def _work(self, index: int) -> None:
        try:
            self._start(index)
            while (turn := self._waiting.take(index)) is not None:
                try:
                    if not nobody_waits(turn.asked.message):
                        self._serve(index, turn)
                finally:
                    self._release(turn.asked)
                    self._waiting.done(index)
        except WorkerFailed as error:
            self._fail(error)
        finally:
            if worker := self._running.get(index):
                worker.end()

    def _start(self, index: int) -> None:
        gpu = self._gpus[index % len(self._gpus)] if self._gpus else None
        with self._lock:
            if self._closing:
                raise WorkerFailed("The run has ended.")
            worker = self._running[index] = WorkerProcess(self._task, gpu)
        worker.wait()

    def _serve(self, index: int, turn: Turn[Asked]) -> None:
        worker, message = self._running[index], turn.asked.message
        try:
            answered = worker.answer(turn.asked, self._context(turn.node), turn.number)
        except Exception as error:
            # It died, or what it said is no answer: then nobody knows where its next one begins.
            if not isinstance(error, EOFError):
                _LOG.exception("What a worker process sent is no answer; it is started anew.")
            elif not self._closing:
                _LOG.warning("A worker process died as it served node %d.", turn.node)
            worker.end()
            self._deliver(crashed(message))
            self._start(index)
            return
        if answered is None:
            self._deliver(crashed(message))
            return
        reply, state = answered
        if reply.metadata.reply_to_message_id != message.metadata.message_id:
            self._deliver(crashed(message))
            return
        self._keep(turn.node, state)
        self._deliver(reply)
