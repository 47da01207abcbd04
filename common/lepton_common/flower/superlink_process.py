"""The SuperLink's own program, with parts of it replaced: `python -m` this, FOLDER, its words.

Stock, it holds each reply in memory until all of it is taken, as many as there are sites; here
large objects lie in files. Each of its layers hands a request's body on piece by piece, by tasks
of its own, which is half of what an object costs; here the first layer waits for the whole. And
what a connection cuts off is lost; `link_state` mends that.
"""

import asyncio
import importlib
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.supercore.object_store.in_memory_object_store import InMemoryObjectStore

from lepton_common.flower.link_state import WholeMessages
from lepton_common.pages import give_back_freed_memory

_SMALL = 1 << 16
_IDLE_S = 1.0
_OBJECT, _AT_ONCE = "-object", 4  # the end of the paths by which objects come and go
_IN_FILE = b"in a file"  # an object's own content is longer: it begins with its head
_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]


class FileObjectStore(InMemoryObjectStore):
    """Flower's store in memory, but for the contents of large objects, which lie in files."""

    def __init__(self, folder: Path) -> None:
        """Begins empty.

        Args:
            folder: of nobody else; what an earlier store left there is removed.
        """
        super().__init__()
        self._folder = folder
        folder.mkdir(mode=0o700, exist_ok=True)
        for left in folder.iterdir():
            left.unlink()

    def put(self, object_id: str, object_content: bytes) -> None:
        """Takes an object in, once its content is found to be what its id says."""
        super().put(object_id, object_content)
        if len(object_content) < _SMALL:
            return
        written = self._folder / f"{object_id}.{threading.get_ident()}"
        written.write_bytes(object_content)
        with self.lock_store:
            entry = self.store.get(object_id)
            if entry is None:
                written.unlink()
                return
            written.replace(self._folder / object_id)
            entry.content = _IN_FILE

    def get(self, object_id: str) -> bytes | None:
        """Returns an object's content; None where it is not known, empty where it is to come."""
        content: bytes | None = super().get(object_id)
        if content is not _IN_FILE:
            return content
        try:
            return (self._folder / object_id).read_bytes()
        except FileNotFoundError:
            return None  # deleted just now

    def delete(self, object_id: str) -> None:
        """Deletes an object, and what nothing else refers to below it."""
        with self.lock_store:
            super().delete(object_id)
            if object_id not in self.store:
                (self._folder / object_id).unlink(missing_ok=True)

    def clear(self) -> None:
        """Deletes all."""
        with self.lock_store:
            super().clear()
            for path in self._folder.iterdir():
                path.unlink()


class WholeBodies:
    """The outermost layer, which hands on a request once its whole body has come.

    Of requests that carry objects only few are worked on at once: each is copied several times on
    its way, and sites are many. Whoever reads or writes slowly keeps nobody waiting. Once nobody
    has carried any for a while, what they took goes back to the system.
    """

    def __init__(self, app: _App) -> None:
        self._app, self._few = app, asyncio.Semaphore(_AT_ONCE)
        self._idle: asyncio.TimerHandle | None = None

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pieces: list[bytes] = []
        while True:
            event = await receive()
            if event["type"] != "http.request":
                return  # nobody waits for an answer any more
            pieces.append(event.get("body", b""))
            if not event.get("more_body", False):
                break
        waiting = [{"type": "http.request", "body": b"".join(pieces), "more_body": False}]
        pieces.clear()

        async def hand_on() -> _Event:
            return waiting.pop() if waiting else await receive()

        if not scope["path"].endswith(_OBJECT):
            await self._app(scope, hand_on, send)
            return
        answer: deque[_Event] = deque()

        async def keep(event: _Event) -> None:
            answer.append(event)

        async with self._few:
            await self._app(scope, hand_on, keep)
        while answer:
            await send(answer.popleft())
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, give_back_freed_memory)


def main() -> None:
    """Runs the SuperLink; the first word is the folder of its objects."""
    from starlette.middleware import Middleware

    folder = Path(sys.argv[1])
    sys.argv = ["flower-superlink", *sys.argv[2:]]
    factory = importlib.import_module("flwr.supercore.object_store.object_store_factory")
    factory.InMemoryObjectStore = partial(FileObjectStore, folder)  # type: ignore[attr-defined]
    states = importlib.import_module("flwr.server.superlink.linkstate.linkstate_factory")
    states.InMemoryLinkState = WholeMessages  # type: ignore[attr-defined]
    extensions = importlib.import_module("flwr.superlink.extensions")
    extensions.get_middleware = lambda: (Middleware(WholeBodies),)  # type: ignore[attr-defined]
    importlib.import_module("flwr.superlink.cli").flower_superlink()


if __name__ == "__main__":
    main()
