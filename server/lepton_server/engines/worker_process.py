"""One worker of `engine=processes`, as its parent sees it: started, asked, ended."""

import logging
import os
import socket
import subprocess
import sys
from dataclasses import dataclass

import torch
from flwr.app import Context, Message, RecordDict

from lepton_common.errors import WorkerFailed
from lepton_common.flower.lifting import put_back
from lepton_common.flower.wire import context_from_wire, context_to_wire, from_wire, to_wire
from lepton_server.engines.channel import Channel
from lepton_server.engines.shared_memory import Inbox, Segment

_PROGRAM = "lepton_server.engines.worker"
_VISIBLE = "CUDA_VISIBLE_DEVICES"
_END_WAIT_S = 5.0


@dataclass(frozen=True)
class Work:
    """What every worker does.

    Attributes:
        app: ``module:attribute`` of the ClientApp.
        forget: likewise of what drops a node's cached state; see `Serving`.
        threads_per_site: intra-op threads.
    """

    app: str
    forget: str | None
    threads_per_site: int


@dataclass(frozen=True)
class Asked:
    """A message on its way.

    Attributes:
        message: without its large arrays.
        segments: where these are, by their record's name.
    """

    message: Message
    segments: dict[str, Segment]


class WorkerProcess:
    """A process of its own, in a fresh interpreter that holds nothing of this one's.

    Spawned as `multiprocessing` would, but by its program: the user's own script, which may
    lack a guard, is not run again in it.
    """

    def __init__(self, work: Work, gpu: str | None) -> None:
        """Starts the process; `wait` waits for it.

        Args:
            work: what it does.
            gpu: the one that it sees; None: whatever this process sees.
        """
        self._work, self.ready = work, False
        self._inbox = Inbox()
        ours, theirs = socket.socketpair()
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        if gpu is not None:
            environment[_VISIBLE] = gpu  # before it imports PyTorch, which looks once
        with theirs:
            self._process = subprocess.Popen(  # noqa: S603
                # A session of its own: Ctrl-C is the parent's to act on.
                [sys.executable, "-P", "-m", _PROGRAM, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
            )
        self._channel = Channel(ours)

    def wait(self) -> None:
        """Waits until it can be asked.

        Raises:
            WorkerFailed: it cannot start.
        """
        about = {
            "app": self._work.app,
            "forget": self._work.forget,
            "threads_per_site": self._work.threads_per_site,
            "log_level": logging.getLogger("flwr").level,
        }
        try:
            self._channel.send(about)
            answer, _, _ = self._channel.receive()
        except EOFError as error:
            self.end()
            raise WorkerFailed(
                f"A worker process ended with code {self._process.returncode} before it had "
                "started; what it printed says why. Is there memory for so many (engine.workers)?"
            ) from error
        if "failed" in answer:
            raise WorkerFailed(f"A worker process cannot start: {answer['failed']}.")
        self.ready = True

    def answer(
        self, asked: Asked, context: Context, turn: int
    ) -> tuple[Message, RecordDict] | None:
        """Returns the app's reply and the node's state after it; None where the app raised.

        Raises:
            EOFError: the process died.
        """
        segments = [
            {"number": segment.number, "record": key, "places": segment.places}
            for key, segment in asked.segments.items()
        ]
        files = [segment.file for segment in asked.segments.values()]
        parts = [to_wire(asked.message), context_to_wire(context)]
        self._channel.send({"turn": turn, "segments": segments}, parts, files)
        about, parts, files = self._channel.receive()
        for file in files:
            self._inbox.take(file)
        if "crashed" in about:
            return None
        reply = from_wire(parts[0])
        for key, places in about["records"].items():
            put_back(reply, key, self._inbox.read(places))
        return reply, context_from_wire(parts[1]).state

    def kill(self) -> None:
        """Ends it at once, from any thread."""
        self._process.kill()

    def end(self) -> None:
        """Hangs up, and waits until the process is gone."""
        self._channel.close()
        try:
            self._process.wait(_END_WAIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def visible_gpus() -> list[str]:
    """Returns the names by which this machine's GPUs are given to processes; none without CUDA."""
    count = torch.cuda.device_count()
    named = [name for name in os.environ.get(_VISIBLE, "").split(",") if name]
    return named[:count] if named else [str(index) for index in range(count)]
