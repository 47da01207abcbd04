"""Channels over a Unix socket on which a caller has a name, as the proxy would say it."""

import grpc


class _Named(
    grpc.UnaryUnaryClientInterceptor,
    grpc.UnaryStreamClientInterceptor,
):
    def __init__(self, name):
        self._metadata = [("x-lepton-site", name)]

    def _go_on(self, continuation, details, request):
        return continuation(details._replace(metadata=self._metadata), request)

    intercept_unary_unary = intercept_unary_stream = _go_on


def connect_as(name, socket):
    """Returns what opens a channel to a socket as a site."""
    return lambda: grpc.intercept_channel(grpc.insecure_channel(f"unix:{socket}"), _Named(name))
