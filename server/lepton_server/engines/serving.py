"""Answers messages in a worker's process, with an app that is given by its name."""

import pkgutil
from collections.abc import Callable

import torch
from flwr.app import Context, Message

from lepton_common.flower.task_identity import speak_for

Forget = Callable[[Context], None]


class Serving:
    """The app of all nodes in one process, which serves now these nodes, now those."""

    def __init__(self, app: str, forget: str | None, threads_per_site: int) -> None:
        """Imports the app.

        Args:
            app: ``module:attribute`` of a ClientApp.
            forget: likewise of a function that drops what the process keeps of a node on disk;
                None: it keeps nothing.
            threads_per_site: intra-op threads.

        Raises:
            Exception: whatever importing them raises.
        """
        torch.set_num_threads(threads_per_site)
        self._app: Callable[[Message, Context], Message] = pkgutil.resolve_name(app)
        self._forget: Forget | None = pkgutil.resolve_name(forget) if forget else None
        self._seen: dict[int, int] = {}

    def answer(self, message: Message, context: Context, number: int) -> Message:
        """Returns the app's answer.

        Args:
            message: for the node of ``context``.
            context: its state may be changed.
            number: how many messages the node has been given, in whatever process.

        Raises:
            TypeError: it is something else than a message.
            Exception: whatever the app raises.
        """
        node = context.node_id
        if self._forget is not None and self._seen.get(node, 0) != number - 1:
            # Another process has served it since: what is kept here is older than the disk.
            self._forget(context)
        self._seen[node] = number
        speak_for(message.metadata.run_id, node)
        reply = self._app(message, context)
        if not isinstance(reply, Message):
            raise TypeError
        return reply
