"""Messages that wait for a worker, so that one worker at a time serves a node."""

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

_PATIENCE_S = 0.01
_NOBODY = -1


@dataclass(frozen=True)
class Turn(Generic[T]):
    """One message that a worker is to answer.

    Attributes:
        node: whom it is for.
        number: how many messages the node has been given, this one included. A worker that did
            not see the one before knows that another did, and that what it kept is old.
        asked: the message.
    """

    node: int
    number: int
    asked: T


class Waiting(Generic[T]):
    """Queues of messages: of each worker, for the nodes that it served last, and of all."""

    def __init__(self, *, keep: bool) -> None:
        """Begins empty.

        Args:
            keep: whether a node stays with the worker that served it. An idle worker takes it
                over where that one is busy, after a moment's patience: whoever begins to serve
                a node must read what is on its disk.
        """
        self._keep = keep
        self._queues: dict[int, deque[tuple[int, T]]] = {_NOBODY: deque()}
        self._owner: dict[int, int] = {}
        self._served: dict[int, int] = {}
        self._at_work: dict[int, int] = {}  # worker -> the node that it serves
        self._changed = threading.Condition()
        self._closed, self._put_at = False, 0.0

    def put(self, messages: Iterable[tuple[int, T]]) -> None:
        """Adds messages, each with its node, which are handed out in about this order."""
        with self._changed:
            for node, asked in messages:
                queue = self._owner.get(node, _NOBODY)
                self._queues.setdefault(queue, deque()).append((node, asked))
            self._put_at = time.monotonic()
            self._changed.notify_all()

    def take(self, worker: int) -> Turn[T] | None:
        """Waits for a message; None once there will be no more."""
        began = time.monotonic()
        with self._changed:
            while not self._closed:
                found = self._next(worker, [worker, _NOBODY])
                others = self._of_the_busy(worker)
                left = max(began, self._put_at) + _PATIENCE_S - time.monotonic()
                if found is None and left <= 0:
                    # The newest, which its own worker would come to last.
                    found = self._next(worker, others, newest=True)
                if found is not None:
                    self._changed.notify_all()  # this worker is busy now, and may be helped
                    return found
                helpful = left > 0 and any(self._queues[other] for other in others)
                self._changed.wait(left if helpful else None)
        return None

    def done(self, worker: int) -> None:
        """Says that a worker has answered."""
        with self._changed:
            self._at_work.pop(worker, None)
            self._changed.notify_all()

    def close(self) -> list[T]:
        """Hands out nothing any more, and returns what was waiting."""
        with self._changed:
            self._closed = True
            left = [asked for queue in self._queues.values() for _, asked in queue]
            self._queues = {_NOBODY: deque()}
            self._changed.notify_all()
        return left

    def _of_the_busy(self, worker: int) -> list[int]:
        """Returns whose queues may be helped out with, the longest first."""
        others = [other for other in self._at_work if other != worker and other in self._queues]
        return sorted(others, key=lambda other: -len(self._queues[other]))

    def _next(self, worker: int, queues: list[int], *, newest: bool = False) -> Turn[T] | None:
        served = self._at_work.values()
        for name in queues:
            queue = self._queues.get(name, deque())
            places = range(len(queue))
            order = reversed(places) if newest else iter(places)
            place = next((place for place in order if queue[place][0] not in served), None)
            if place is None:
                continue
            node, asked = queue[place]
            del queue[place]
            self._at_work[worker] = node
            self._served[node] = number = self._served.get(node, 0) + 1
            if self._keep:
                self._owner[node] = worker
            return Turn(node, number, asked)
        return None
