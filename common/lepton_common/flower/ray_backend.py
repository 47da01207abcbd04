"""Flower's Ray backend: actors, on one machine or on a running cluster, that answer messages."""

import importlib.util
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.app import Context, Message

from lepton_common.errors import RayMissing, RayUnreachable

if TYPE_CHECKING:
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend
    from flwr.simulation.ray_transport.ray_actor import BasicActorPool

_LOOK_S = 10.0
App = Callable[[Message, "Carried"], Message]


@dataclass
class Carried:
    """What goes to an actor and back in the place of a context.

    Attributes:
        node_config: all that Flower's backend looks at.
        context: the node's.
        turn: how many messages the node has been given.
    """

    node_config: dict[str, str]
    context: Context
    turn: int


class RayActors:
    """A pool of Flower's actors; as many threads as there are actors may ask at a time."""

    def __init__(
        self,
        load: Callable[[], App],
        *,
        address: str | None,
        workers: int,
        cpus: int,
    ) -> None:
        """Starts Ray, or joins a cluster, and starts the actors.

        Args:
            load: returns the app, in an actor, for each message.
            address: of a running cluster, or ``auto``; None: one machine, for as long as this.
            workers: actors on one machine; of a cluster all are used that there is room for.
            cpus: that each takes. GPUs, if there are any, are divided among them.

        Raises:
            RayMissing: Ray is not installed.
            RayUnreachable: there is no such cluster, or it has no room for one actor.
        """
        if importlib.util.find_spec("ray") is None:
            raise RayMissing(
                "engine=ray needs Ray, which is not installed: pip install 'lepton-fl[ray]'."
            )
        # Read when Ray is imported or started: nothing about a run goes to its makers.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        import ray

        self._ours = not ray.is_initialized()
        self._backend = _begin(address, workers, cpus)
        try:
            self._backend.client_resources |= {"num_gpus": _gpus_each(cpus)}
            self._backend.build(load)  # type: ignore[arg-type]
            assert self._backend.pool is not None
            _replace_the_dead(self._backend.pool)
        except ValueError as error:
            self.close()
            raise RayUnreachable(
                f"No machine of the Ray cluster has {cpus} free processors, which a site's "
                "threads take: lower engine.threads_per_site, or add machines."
            ) from error

    @property
    def size(self) -> int:
        """Number of actors."""
        return int(self._backend.num_workers)

    def answer(self, message: Message, context: Context, turn: int) -> tuple[Message, Context]:
        """Returns the app's reply and the node's context after it.

        Raises:
            Exception: whatever the app raised, or that the actor died.
        """
        node = str(context.node_id)
        carried = Carried({"partition-id": node}, context, turn)
        process: Callable[[Message, Carried], tuple[Message, Carried]]
        process = self._backend.process_message  # type: ignore[assignment]
        reply, after = process(message, carried)
        return reply, after.context

    def close(self) -> None:
        """Ends the actors, and Ray where this began it."""
        if self._ours:
            self._backend.terminate()
        elif self._backend.pool is not None:
            self._backend.pool.terminate_all_actors()


def _replace_the_dead(pool: "BasicActorPool") -> None:
    """Lets a pool start an actor in the place of one that died; Flower would ask that again."""
    from ray.exceptions import RayActorError

    def give_back(future: Any) -> None:  # noqa: ANN401
        actor = pool._future_to_actor.pop(future)
        if isinstance(sys.exception(), RayActorError):  # Flower calls this where it caught it
            actor = pool.create_actor_fn()  # type: ignore[no-untyped-call]
        pool.pool.append(actor)

    pool.add_actor_back_to_pool = give_back  # type: ignore[method-assign]


def _gpus_each(cpus: int) -> float:
    """Returns each actor's share of the cluster's GPUs, rounded down."""
    import ray

    found = ray.cluster_resources()
    actors = max(1, int(found.get("CPU", 0)) // cpus)
    return int(10_000 * min(1.0, found.get("GPU", 0.0) / actors)) / 10_000


def _begin(address: str | None, workers: int, cpus: int) -> "RayBackend":
    from flwr.server.superlink.fleet.vce.backend.raybackend import RayBackend

    # Without "local" Ray would join whatever cluster it finds on this machine.
    local = {"address": "local", "num_cpus": workers * cpus}
    where: dict[str, Any] = {"address": address} if address else local
    config: dict[str, Any] = {
        "init_args": {**where, "log_to_driver": False, "logging_level": "error"},
        "client_resources": {"num_cpus": cpus},
    }
    try:
        if address not in (None, "auto"):
            # Ray itself would try for minutes.
            host, _, port = str(address).rpartition(":")
            socket.create_connection((host, int(port)), timeout=_LOOK_S).close()
        return RayBackend(config)
    except Exception as error:  # Ray says that a node is late by a bare one
        if address is None:
            raise RayUnreachable(f"Ray cannot be started on this machine: {error}") from error
        raise RayUnreachable(
            f"Cannot reach a Ray cluster at engine.address={address} ({error}). Start one with "
            "'ray start --head', or leave the address out."
        ) from error
