"""The SuperLink's own program, with parts of it replaced: `python -m` this, FOLDER, its words.

Stock, it holds each reply in memory until all of it is taken, as many as there are sites; here
large objects lie in files. Each of its layers hands a request's body on piece by piece, by tasks
of its own, which is half of what an object costs; here the first layer waits for the whole, and
whoever asks for a large object is told its file: the proxy, which sends that in place of the
answer, or the executor. And what a connection cuts off is lost; `link_state` mends that.
"""

import asyncio
import contextlib
import hmac
import importlib
import re
import sys
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from google.protobuf.message import DecodeError

from lepton_common.flower.bulk_transport import (
    BODIES,
    BODY_HEADER,
    FILE_HEADER,
    OBJECTS,
    SECRET,
    owner_header,
)
from lepton_common.flower.link_state import WholeMessages
from lepton_common.flower.object_files import SMALL, FileObjectStore
from lepton_common.pages import give_back_freed_memory

_IDLE_S = 1.0
_OBJECT, _PUSH = "-object", "/push-object"  # the ends of paths by which objects come and go
_AT_ONCE = 4
_CONTROL = "/v1/control/"  # stock, it asks for nothing
_LAYERS = {
    "ControlSensitiveResponseMiddleware": _CONTROL,
    "ControlAuthenticationMiddleware": _CONTROL,
    "ControlLicenseMiddleware": _CONTROL,
    "ControlEventLogMiddleware": _CONTROL,
    "RuntimeTracingMiddleware": "/v1/runtime/",
    "NodeAuthMiddleware": "/v1/fleet/",
    "FleetEventLogMiddleware": "/v1/fleet/",
}
_Event = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[_Event]]
_Send = Callable[[_Event], Awaitable[None]]
_App = Callable[[MutableMapping[str, Any], _Receive, _Send], Awaitable[None]]


class WholeBodies:
    """The outermost layer, which hands on a request once its whole body has come.

    Of requests that carry objects only few are worked on at once: each is copied several times on
    its way, and sites are many. Whoever reads or writes slowly keeps nobody waiting. Once nobody
    has carried any for a while, what they took goes back to the system.
    """

    def __init__(self, app: _App, store: FileObjectStore, folder: Path) -> None:
        """Wraps an app.

        Args:
            app: the next layer.
            store: where objects go.
            folder: that is shared with the proxy, which puts bodies there, and with the owner,
                whose secret is there.
        """
        self._app, self._few = app, asyncio.Semaphore(_AT_ONCE)
        self._store, self._bodies = store, folder / BODIES
        self._owner = owner_header((folder / SECRET).read_bytes())
        self._idle: asyncio.TimerHandle | None = None

    async def __call__(
        self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
    ) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if status := self._refused(scope):
            await send({"type": "http.response.start", "status": status, "headers": []})
            await send({"type": "http.response.body", "body": b""})
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
            lifted = b""
            if scope["path"].endswith(_PUSH):
                named = dict(scope["headers"]).get(BODY_HEADER.encode(), b"").decode("latin-1")
                lifted = await asyncio.to_thread(self._lift, waiting[0], named)
            try:
                await self._app(scope, hand_on, keep)
            finally:
                self._store.withdraw(lifted)
        self._point_to_file(answer)
        while answer:
            await send(answer.popleft())
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, give_back_freed_memory)

    def _refused(self, scope: MutableMapping[str, Any]) -> int:
        """Returns the status by which a request is refused before Flower sees it; 0 for none."""
        if not scope["path"].isprintable():
            return 404  # Flower's routes pass over a line's end, and the paths here would differ
        if scope["path"].startswith(_CONTROL):
            name, value = self._owner
            said = dict(scope["headers"]).get(name.encode(), b"")
            return 0 if hmac.compare_digest(said, value.encode()) else 403
        return 0

    def _lift(self, event: _Event, named: str) -> bytes:
        """Has a request hold something short in place of a large content, and returns that.

        Args:
            event: with the body.
            named: by whoever put that into a file; "" where it came here.
        """
        if named:
            with contextlib.suppress(OSError):  # gone with whoever sent it
                event["body"] = (self._bodies / Path(named).name).read_bytes()
        if len(event["body"]) < SMALL:
            return b""
        try:
            request = PushObjectRequest.FromString(event["body"])
        except DecodeError:
            return b""  # the next layers say so
        lifted = request.object_content = self._store.announce(request.object_content)
        event["body"] = request.SerializeToString()
        return lifted

    def _point_to_file(self, answer: deque[_Event]) -> None:
        """Has an answer that names a large object name its file, which is the answer itself."""
        body = b"".join(event.get("body", b"") for event in answer)
        if self._store.mark not in body:
            return
        content = PullObjectResponse.FromString(body).object_content
        name = content.removeprefix(self._store.mark)
        if content == name or not re.fullmatch(b"[0-9a-f]{64}", name):
            return  # somebody's own content
        start = answer.popleft()
        kept = [entry for entry in start["headers"] if entry[0] != b"content-length"]
        place = (FILE_HEADER.encode(), f"/{OBJECTS}/".encode() + name)
        headers = [*kept, (b"content-length", b"0"), place]
        answer.clear()
        answer.append({**start, "headers": headers})
        answer.append({"type": "http.response.body", "body": b"", "more_body": False})


def _only(prefix: str, layer: type) -> type:
    """Returns a layer of Flower's by which requests to other paths pass.

    Stock, it looks at the path itself and hands on what is not its own, by tasks made for that.
    """

    class Only(layer):  # type: ignore[misc]
        async def __call__(
            self, scope: MutableMapping[str, Any], receive: _Receive, send: _Send
        ) -> None:
            own = scope["type"] != "http" or scope["path"].startswith(prefix)
            await (super().__call__ if own else self.app)(scope, receive, send)

    return Only


def main() -> None:
    """Runs the SuperLink; the first word is its folder, which the proxy shares."""
    from starlette.middleware import Middleware

    folder = Path(sys.argv[1])
    store = FileObjectStore(folder / OBJECTS)
    sys.argv = ["flower-superlink", *sys.argv[2:]]
    factory = importlib.import_module("flwr.supercore.object_store.object_store_factory")
    factory.InMemoryObjectStore = lambda: store  # type: ignore[attr-defined]
    states = importlib.import_module("flwr.server.superlink.linkstate.linkstate_factory")
    states.InMemoryLinkState = WholeMessages  # type: ignore[attr-defined]
    layer = Middleware(WholeBodies, store=store, folder=folder)
    extensions = importlib.import_module("flwr.superlink.extensions")
    extensions.get_middleware = lambda: (layer,)  # type: ignore[attr-defined]
    application = importlib.import_module("flwr.superlink.main")
    for name, prefix in _LAYERS.items():
        setattr(application, name, _only(prefix, getattr(application, name)))
    importlib.import_module("flwr.superlink.cli").flower_superlink()


if __name__ == "__main__":
    main()
