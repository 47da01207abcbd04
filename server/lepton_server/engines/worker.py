"""The program of one worker of `engine=processes`: answers messages until its parent is gone."""

import contextlib
import mmap
import os
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lepton_common.flower.lifting import lift, put_back
from lepton_common.flower.wire import context_from_wire, context_to_wire, from_wire, to_wire
from lepton_server.engines.channel import Channel
from lepton_server.engines.shared_memory import Outbox

Answer = Callable[..., Any]
_LOOK_S = 0.05


class Worker:
    """What a worker keeps between messages: its app, and views of the memory that it shares."""

    def __init__(self, channel: Channel, busy: threading.Event) -> None:
        self._channel, self._busy = channel, busy
        self._mapped: dict[int, memoryview] = {}
        self._outbox = Outbox()

    def work(self) -> None:
        """Starts up, says so, and answers one message after the other.

        Raises:
            EOFError: the parent is gone.
        """
        # Imported here, after whoever started this process has set its environment: PyTorch
        # looks for GPUs once.
        try:
            about, _, _ = self._channel.receive()
            import logging

            from lepton_server.engines.serving import Serving

            logging.getLogger("flwr").setLevel(about["log_level"])
            serving = Serving(about["app"], about["forget"], about["threads_per_site"])
        except EOFError:
            raise
        except BaseException as error:
            self._channel.send({"failed": f"{type(error).__name__}: {error}"})
            return
        self._channel.send({"ready": True})
        while True:
            about, parts, files = self._channel.receive()
            self._busy.set()
            try:
                self._answer(serving.answer, about, parts, files)
            finally:
                self._busy.clear()

    def _answer(
        self, answer: Answer, about: dict[str, Any], parts: list[bytes], files: list[int]
    ) -> None:
        self._map(about["segments"], files)
        try:
            message, context = from_wire(parts[0]), context_from_wire(parts[1])
            for segment in about["segments"]:
                memory = self._mapped[segment["number"]]
                places = segment["places"]
                arrays = [(name, memory[start : start + size]) for name, start, size in places]
                put_back(message, segment["record"], arrays)
            lean, lifted = lift(answer(message, context, about["turn"]))
            back = [to_wire(lean), context_to_wire(context)]
        except BaseException:
            # Its text may tell of records; the parent answers as Flower does for a dead process.
            self._channel.send({"crashed": True})
            return
        finally:
            sys.stdout.flush()
        records, grown = self._outbox.write(lifted)
        self._channel.send({"records": records}, back, [] if grown < 0 else [grown])
        if grown >= 0:
            os.close(grown)

    def _map(self, segments: list[dict[str, Any]], files: list[int]) -> None:
        """Maps what is not mapped yet, for reading; lets go of what this message does not name."""
        if segments:
            named = {segment["number"] for segment in segments}
            self._mapped = {number: m for number, m in self._mapped.items() if number in named}
        for segment, file in zip(segments, files, strict=True):
            if segment["number"] not in self._mapped:
                mapped = mmap.mmap(file, 0, access=mmap.ACCESS_READ)
                self._mapped[segment["number"]] = memoryview(mapped)
            os.close(file)


def _end_with_parent(end: socket.socket, busy: threading.Event) -> None:
    """Ends the process once the parent has hung up, also in the middle of a message."""
    watch = select.poll()
    watch.register(end, 0)  # a hang-up is always told
    while not any(event & (select.POLLHUP | select.POLLERR) for _, event in watch.poll()):
        time.sleep(_LOOK_S)
    while not busy.wait(_LOOK_S):
        pass  # it finds out by itself
    os._exit(1)


def main() -> None:
    """Works for the parent at the other end of a socket, whose descriptor is the one argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    end, busy = socket.socket(fileno=int(sys.argv[1])), threading.Event()
    end.set_inheritable(False)
    threading.Thread(target=_end_with_parent, args=(end, busy), daemon=True).start()
    with contextlib.suppress(EOFError):  # the parent is done, or gone
        Worker(Channel(end), busy).work()
    sys.stdout.flush()
    os._exit(0)  # as `multiprocessing` does; taking PyTorch down in order takes a second


if __name__ == "__main__":
    main()
