"""The coordinator's gRPC services on one Unix socket, which only its owner opens.

The proxy passes the public ones on, and says who calls from the certificate.
"""

from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lepton_common.control import control_pb2 as wire
from lepton_common.control import control_pb2_grpc as services

SOCKET = "control.sock"
_MOST_BYTES = 1 << 20  # of one request
_MOST_CALLS = 1024  # at once: each site that attends holds one, and a thread


def serve(socket: Path, **servicers: object) -> grpc.Server:
    """Starts services, given by their names, with health checking and reflection."""
    server = grpc.server(
        futures.ThreadPoolExecutor(_MOST_CALLS),
        maximum_concurrent_rpcs=_MOST_CALLS,
        options=[("grpc.max_receive_message_length", _MOST_BYTES)],
    )
    healthy, names = health.HealthServicer(), []
    for name, servicer in servicers.items():
        add: Callable[..., None] = getattr(services, f"add_{name}Servicer_to_server")
        add(servicer, server)
        names.append(wire.DESCRIPTOR.services_by_name[name].full_name)
    for service in ("", *names):
        healthy.set(service, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
    reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
    server.add_insecure_port(f"unix:{socket.resolve()}")
    server.start()
    return server


def refuse(context: grpc.ServicerContext, code: Any, error: BaseException) -> NoReturn:  # noqa: ANN401
    """Ends a call with the name of an error and its sentence."""
    context.abort(code, f"{type(error).__name__}: {error}")
    raise AssertionError("abort raises")
