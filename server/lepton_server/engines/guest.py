"""Third-party Flower apps on our engines: what Flower promises an app, around any Grid.

`GuestApp` stands before the app at each node, `GuestGrid` before the engine at the server. No
consent, no ledger and no door: whoever uses them says so in red.
"""

import copy
import logging
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from lepton_common.flower.lost import expired
from lepton_common.flower.project import ConfigValue, load_client_app
from lepton_server.engines.traffic import Traffic
from lepton_server.grid import OwnGrid

if TYPE_CHECKING:
    from flwr.supercore.run import Run

# Below Flower's own logger, so that a failing app is shown where Flower shows it.
_LOG = logging.getLogger("flwr.lepton")
_TURN_WAIT_S = 0.05
# Flower's ErrorCode.
_UNKNOWN, _LOAD_FAILED, _RAISED, _CRASHED = 0, 1, 2, 8


class GuestApp:
    """A third-party ClientApp as its author knows it from Flower.

    Messages and the node's state are copied on their way in and out, as they are where they
    cross a wire: an app may change what it was given. Array data are bytes, which copies share.
    State that a failing call left behind is dropped. May be pickled among one owner's workers;
    the app is then imported again.
    """

    def __init__(self, reference: str, folder: Path, run_config: dict[str, ConfigValue]) -> None:
        """Takes an app by reference; it is imported with the first message, or by `load`.

        Args:
            reference: ``module:attribute``.
            folder: the app's folder.
            run_config: the run's config, flat.
        """
        self._reference, self._folder, self._run_config = reference, folder, run_config
        self._app: ClientApp | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return GuestApp, (self._reference, self._folder, self._run_config)

    def load(self) -> ClientApp:
        """Returns the app, imported once.

        Raises:
            BaseException: what its import raises.
        """
        if self._app is None:
            self._app = load_client_app(self._reference, self._folder)
        return self._app

    def __call__(self, message: Message, context: Context) -> Message:
        """Answers a message; whatever the app does, this returns a reply to it."""
        own = Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=dict(context.node_config),
            state=copy.deepcopy(context.state),
            run_config=dict(self._run_config),
        )
        try:
            app = self.load()
        except BaseException as error:
            self._tell(message, "cannot be loaded", error)
            reason = "An exception was raised when attempting to load `ClientApp`"
            return Message(Error(_LOAD_FAILED, reason), reply_to=message)
        try:
            reply = app(copy.deepcopy(message), own)
        except Exception as error:
            self._tell(message, "raised an exception", error)
            return Message(Error(_RAISED, _reason(error)), reply_to=message)
        except BaseException as error:
            self._tell(message, "ended its process", error)
            return _crashed(message)
        return self._checked(reply, message, own, context)

    def _checked(self, reply: object, message: Message, own: Context, context: Context) -> Message:
        if (
            not isinstance(reply, Message)
            or reply.metadata.reply_to_message_id != message.metadata.message_id
        ):
            kind = type(reply).__name__
            self._tell(message, f"returned a {kind} that is no Message(..., reply_to=message)")
            return _crashed(message)
        if own.run_config != self._run_config:
            text = (
                "The `run_config` field of the `Context` object cannot be "
                f"modified (run_id: {context.run_id})."
            )
            self._tell(message, f"failed: {text}")
            return Message(Error(_UNKNOWN, _reason(ValueError(text))), reply_to=message)
        state: object = own.state
        if not isinstance(state, RecordDict):
            kind = type(state).__name__
            self._tell(message, f"left a {kind} as its state, where Flower keeps a RecordDict")
            return _crashed(message)
        # An app may have put another RecordDict in the place of the one it was given.
        context.state.clear()
        context.state.update(state)
        return copy.deepcopy(reply)

    def _tell(self, message: Message, what: str, error: BaseException | None = None) -> None:
        """Logs what an app did, with its traceback below our own frame."""
        told, trace = message.metadata, error.__traceback__ if error is not None else None
        _LOG.error(
            "ClientApp of node %d (%s) %s",
            told.dst_node_id,
            told.message_type,
            what,
            exc_info=error and (type(error), error, trace.tb_next if trace else None),
        )


class GuestGrid(OwnGrid):
    """Flower's promises to a ServerApp around an engine's Grid.

    A message past its time to live is answered by Flower's error, unknown nodes are left out,
    late replies that nobody can ask for any more are dropped, and several threads may ask at
    once, as Flower's older servers do.
    """

    def __init__(self, engine: Grid) -> None:
        """Stands before an engine.

        Args:
            engine: answers the messages; it may not be used by others meanwhile.
        """
        self._engine, self.traffic = engine, Traffic()
        self._nodes = frozenset(engine.get_node_ids())
        self._lock = threading.Lock()  # held for short: what is expected, and what has come
        self._turn = threading.Lock()  # held while one thread waits for the engine
        self._deadlines: dict[str, float] = {}
        self._abandoned: set[str] = set()
        self._arrived: dict[str, Message] = {}

    def set_run(self, run: "Run") -> None:
        """Sets the run that messages belong to."""
        self._engine.set_run(run)

    @property
    def run(self) -> "Run":
        """A copy of the run that messages belong to."""
        return copy.copy(self._engine.run)

    def get_node_ids(self) -> Iterable[int]:
        """Returns all node ids."""
        return self._engine.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Sends messages and returns their ids, without those that Flower would not send.

        These are messages to unknown nodes, and messages whose time is over already.

        Raises:
            ValueError: a message that is a reply, or has no time to live.
        """
        batch = []
        for message in messages:
            metadata = message.metadata
            if metadata.reply_to_message_id or metadata.ttl <= 0:
                raise ValueError(f"Invalid message: {message}")
            if metadata.dst_node_id not in self._nodes:
                _LOG.error("Invalid destination node ID for Message: %s", metadata.dst_node_id)
            elif metadata.created_at + metadata.ttl <= time.time():
                _LOG.error("Message TTL has expired")
            else:
                batch.append(message)
        # The lock keeps replies from being looked for before their messages are known here.
        with self._lock:
            ids = list(self._engine.push_messages(batch))
            for message_id, message in zip(ids, batch, strict=True):
                metadata = message.metadata
                self._deadlines[message_id] = metadata.created_at + metadata.ttl
            self.traffic.sent(ids, batch)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Returns the replies that are there, waiting some milliseconds for the first one."""
        wanted = list(dict.fromkeys(message_ids))
        if not any(message_id in self._arrived for message_id in wanted):
            self._fetch()
        replies, now = [], time.time()
        with self._lock:
            for message_id in wanted:
                deadline = self._deadlines.get(message_id, 0.0)
                reply = self._arrived.get(message_id)
                if deadline < now:
                    reply = expired(message_id, self._engine.run.run_id)
                if reply is None:
                    continue
                if message_id in self._arrived:
                    del self._arrived[message_id]
                elif message_id in self._deadlines:
                    self._abandoned.add(message_id)
                self._deadlines.pop(message_id, None)
                self.traffic.answered(message_id, failed=reply.has_error())
                replies.append(reply)
        return replies

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
        with self._lock:
            for message_id in waiting:
                # Nobody else has these ids.
                if self._arrived.pop(message_id, None) is None:
                    self._abandoned.add(message_id)
                del self._deadlines[message_id]
                self.traffic.answered(message_id, failed=True)
        return replies

    def _fetch(self) -> None:
        """Takes over what the engine has, for whichever thread asked for it."""
        if not self._turn.acquire(timeout=_TURN_WAIT_S):
            return
        try:
            with self._lock:
                asked = [*self._deadlines.keys() - self._arrived.keys(), *self._abandoned]
            for reply in self._engine.pull_messages(asked):
                message_id = reply.metadata.reply_to_message_id
                with self._lock:
                    if message_id in self._abandoned:
                        self._abandoned.remove(message_id)
                    else:
                        self._arrived[message_id] = reply
        finally:
            self._turn.release()


def _reason(error: Exception) -> str:
    """Returns an error's words in the form that Flower's sites send."""
    return str(type(error)) + ":<'" + str(error) + "'>"


def _crashed(message: Message) -> Message:
    return Message(Error(_CRASHED, "ClientApp stopped responding."), reply_to=message)
