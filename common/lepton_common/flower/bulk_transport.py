"""A way for Flower's HTTP clients to carry models: a body is read and written in one piece.

httpx takes a body apart into the records of TLS, 16 KB each, and hands every one of them through
five layers of Python; that is most of what a large object costs its reader.
"""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

if TYPE_CHECKING:
    from flwr.supercore.protobuf.client import ProtobufClient

_CONNECTIONS = 8
# Names of urllib3's faults at httpx, the special ones first.
_FAULTS: tuple[tuple[type[Exception], type[httpx.TransportError]], ...] = (
    (NewConnectionError, httpx.ConnectError),
    (ConnectTimeoutError, httpx.ConnectTimeout),
    (ReadTimeoutError, httpx.ReadTimeout),
    (ProtocolError, httpx.RemoteProtocolError),
    (HTTPError, httpx.NetworkError),
)


class BulkTransport(httpx.BaseTransport):
    """urllib3's connections, under httpx; requests and answers are whole before they are passed."""

    def __init__(self, tls: ssl.SSLContext) -> None:
        """Opens no connection yet.

        Args:
            tls: whom to trust, and the own certificate.
        """
        self._pool = urllib3.PoolManager(ssl_context=tls, maxsize=_CONNECTIONS)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request and returns the answer to it.

        Raises:
            httpx.TransportError: there is none.
        """
        timeout = request.extensions.get("timeout", {})
        with _as_httpx(request):
            answer = self._pool.urlopen(
                request.method,
                str(request.url),
                body=request.read(),
                headers=dict(request.headers),
                timeout=urllib3.Timeout(timeout.get("connect"), timeout.get("read")),
                retries=False,
                redirect=False,
                decode_content=False,
            )
        return httpx.Response(
            answer.status, headers=list(answer.headers.items()), content=answer.data
        )

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()


def carry_in_bulk(client: "ProtobufClient", tls: ssl.SSLContext) -> None:
    """Has a client of Flower's use this transport wherever the way does not lead by a proxy."""
    # httpx asks those of its proxies first, which stay.
    client._client._transport.close()
    client._client._transport = BulkTransport(tls)


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError) as error:
        kind = next((at for of, at in _FAULTS if isinstance(error, of)), httpx.NetworkError)
        raise kind(str(error), request=request) from error
