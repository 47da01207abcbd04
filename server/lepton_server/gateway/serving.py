"""The coordinator's gRPC services on one Unix socket, which only its owner opens.

The proxy passes the public ones on, and says who calls from the certificate.
"""

import logging
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lepton_common.control import control_pb2 as wire
from lepton_common.control import control_pb2_grpc as services
from lepton_common.errors import MalformedMessage

SOCKET = "control.sock"
_MOST_BYTES = 1 << 20  # of one request
_LOG = logging.getLogger("lepton.server")
_MOST_CALLS = 1024  # at once: each site that attends holds one, and a thread


def serve(socket: Path, **servicers: object) -> grpc.Server:
    """Starts services, given by their names, with health checking and reflection."""
    server = grpc.server(
        futures.ThreadPoolExecutor(_MOST_CALLS),
        interceptors=[_OnlyNames()],
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


class _OnlyNames(grpc.ServerInterceptor):  # type: ignore[misc]
    """Has a call that fails say the name of the error; its text stays in the coordinator's log."""

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """Returns the method's handler, with its errors named."""
        found = continuation(handler_call_details)
        if found is None or found.request_streaming:  # of reflection and the like
            return found

        # Read here: of a call whose request it cannot read itself, gRPC keeps 17 KB for ever.
        def read(data: bytes, context: grpc.ServicerContext) -> object:
            try:
                return found.request_deserializer(data)
            except DecodeError:
                unreadable = MalformedMessage("The request cannot be read.")
                refuse(context, grpc.StatusCode.INVALID_ARGUMENT, unreadable)

        if not found.response_streaming:

            def call(data: bytes, context: grpc.ServicerContext) -> object:
                with _named(context):
                    return found.unary_unary(read(data, context), context)

            return grpc.unary_unary_rpc_method_handler(call, None, found.response_serializer)

        def stream(data: bytes, context: grpc.ServicerContext) -> Iterator[object]:
            with _named(context):
                yield from found.unary_stream(read(data, context), context)

        return grpc.unary_stream_rpc_method_handler(stream, None, found.response_serializer)


@contextmanager
def _named(context: grpc.ServicerContext) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if context.code() is None:  # else it was refused in so many words
            _LOG.exception("A call of the control service failed.")
            context.abort(grpc.StatusCode.INTERNAL, type(error).__name__)
        raise
