"""A network of the tests: relays TCP connections with delays, loss, stalls and noise, as told.

With a target it stands in its place; without one it is an HTTP proxy (CONNECT), as hospitals have.
"""

import asyncio
import contextlib
import ctypes
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

_CLONE_NEWNET, _LOOK_S, _CHUNK = 0x40000000, 0.02, 1 << 16


@dataclass
class Weather:
    """How it is between a site and the coordinator; may change at any time.

    Attributes:
        latency_s: added to each chunk, one way.
        cut: whether nothing passes: what is under way waits, as packets do that are sent again.
        reset: probability, per chunk, that the connection breaks.
        corrupt: number of chunks to come in which one byte is changed.
        stall: probability, per chunk, that nothing passes for a second.
        break_after: by the way, "out" to the coordinator or "in" to the site, after how many bytes
            from now on a connection breaks, in the midst of what it carries; one number for each.
    """

    latency_s: float = 0.0
    cut: bool = False
    reset: float = 0.0
    corrupt: int = 0
    stall: float = 0.0
    break_after: dict[str, list[int]] = field(default_factory=lambda: {"out": [], "in": []})


class Relay:
    """A relay in a thread of its own, in a network namespace of its own where one is named.

    Attributes:
        port: where it listens.
        passed: connections that it has passed on.
        broken: connections that it has broken.
        corrupted: chunks that it has changed.
    """

    def __init__(self, weather, seed=0, target=None, listen=("127.0.0.1", 0), namespace=None):
        """Begins to relay.

        Args:
            weather: returns the weather for a peer's address.
            seed: of what happens by chance.
            target: host and port of the one place to reach; None for where each peer asks.
            listen: address and port.
            namespace: name of a network namespace.
        """
        self._weather, self._target = weather, target
        self._chance = np.random.default_rng(seed)
        self.passed = self.broken = self.corrupted = 0
        self._ready, self._listen, self._namespace = threading.Event(), listen, namespace
        self._fault = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()
        if self._fault is not None:
            raise self._fault

    def close(self):
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def _run(self):
        try:
            if self._namespace is not None:
                _enter(self._namespace)
            asyncio.run(self._serve())
        except BaseException as fault:
            self._fault = fault
            self._ready.set()

    async def _serve(self):
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._connection, *self._listen)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    async def _connection(self, reader, writer):
        weather = self._weather(writer.get_extra_info("peername")[0])
        out = None
        try:
            target = self._target or await _asked_for(reader, writer)
            while weather.cut:
                await asyncio.sleep(_LOOK_S)
            back, out = await asyncio.open_connection(*target)
            self.passed += 1
            if self._target is None:
                writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            ways = [
                self._pass(reader, out, weather, weather.break_after["out"]),
                self._pass(back, writer, weather, weather.break_after["in"]),
            ]
            tasks = [asyncio.ensure_future(way) for way in ways]
            _, left = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in left:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        except (OSError, ValueError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            return
        finally:
            for end in (writer, out):
                if end is not None:
                    end.transport.abort()

    async def _pass(self, reader, writer, weather, break_after):
        carried = 0
        while data := await reader.read(_CHUNK):
            carried = carried + len(data) if break_after else 0
            if break_after and carried >= break_after[0]:
                break_after.pop(0)
                self.broken += 1
                return
            if self._chance.random() < weather.stall:
                await asyncio.sleep(1.0)
            if weather.latency_s:
                await asyncio.sleep(weather.latency_s)
            while weather.cut:
                await asyncio.sleep(_LOOK_S)
            if self._chance.random() < weather.reset:
                self.broken += 1
                return
            if weather.corrupt > 0:
                weather.corrupt -= 1
                self.corrupted += 1
                changed = bytearray(data)
                changed[self._chance.integers(len(changed))] ^= 1 << self._chance.integers(8)
                data = bytes(changed)
            with contextlib.suppress(ConnectionError):
                writer.write(data)
                await writer.drain()


async def _asked_for(reader, writer):
    """Returns the host and port that a CONNECT asks for."""
    head = await reader.readuntil(b"\r\n\r\n")
    method, place, _ = head.split(b"\r\n")[0].decode().split(" ")
    if method != "CONNECT":
        writer.write(b"HTTP/1.1 405 Only CONNECT\r\n\r\n")
        raise ValueError(method)
    host, _, port = place.rpartition(":")
    return host.strip("[]"), int(port)


def _enter(namespace):
    """Takes this thread, and no other, into a network namespace."""
    handle = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(handle, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(handle)
