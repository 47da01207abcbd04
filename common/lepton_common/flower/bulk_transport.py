"""A way for Flower's HTTP clients to carry models: a body is read and written in one piece.

httpx takes a body apart into the records of TLS, 16 KB each, and hands every one of them through
five layers of Python; that is most of what a large object costs its reader.
"""

import hmac
import secrets
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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

# What the parts of one coordinator tell each other of large bodies, and where those lie.
FILE_HEADER, OBJECTS = "x-accel-redirect", "objects"  # of an answer; the header is nginx's own
BODY_HEADER, BODIES = "x-lepton-body", "body"  # of a request
SECRET = "secret"  # noqa: S105 (the name of a file, of what the SuperLink's owner is known by)
_LARGE = 1 << 16
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

    def __init__(self, tls: ssl.SSLContext, folder: Path | None = None) -> None:
        """Opens no connection yet.

        Args:
            tls: whom to trust, and the own certificate.
            folder: that is shared with a server of one's own on this machine, where large bodies
                lie in files on both ways; None: with any other.
        """
        self._folder = folder
        self._pool = urllib3.PoolManager(ssl_context=tls, maxsize=_CONNECTIONS)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request and returns the answer to it.

        Raises:
            httpx.TransportError: there is none.
            OSError: there is no room for the file of a large body.
        """
        timeout = request.extensions.get("timeout", {})
        with self._carried(request) as (body, headers), _as_httpx(request):
            answer = self._pool.urlopen(
                request.method,
                str(request.url),
                body=body,
                headers=headers,
                timeout=urllib3.Timeout(timeout.get("connect"), timeout.get("read")),
                retries=False,
                redirect=False,
                decode_content=False,
            )
        named = answer.headers.get(FILE_HEADER)
        if self._folder is not None and named is not None:
            try:
                content = (self._folder / OBJECTS / Path(named).name).read_bytes()
            except OSError as error:  # deleted just now; the next answer says so
                raise httpx.ReadError(f"There is no {named} here.", request=request) from error
            return httpx.Response(answer.status, content=content)
        return httpx.Response(
            answer.status, headers=list(answer.headers.items()), content=answer.data
        )

    def close(self) -> None:
        """Closes the connections."""
        self._pool.clear()

    @contextmanager
    def _carried(self, request: httpx.Request) -> Iterator[tuple[bytes, dict[str, str]]]:
        """Gives the body and the headers that go out, and keeps the body's file so long.

        Raises:
            OSError: there is no room for it.
        """
        body, headers = request.read(), dict(request.headers)
        if self._folder is None or len(body) < _LARGE:
            yield body, headers
            return
        path = self._folder / BODIES / secrets.token_hex(16)
        try:
            path.write_bytes(body)
            yield b"", headers | {"content-length": "0", BODY_HEADER: path.name}
        finally:
            path.unlink(missing_ok=True)


def owner_header(secret: bytes) -> tuple[str, str]:
    """Returns the header by which a SuperLink's owner is known on its control API."""
    return "x-lepton-owner", hmac.digest(secret, b"lepton/control/v1", "sha256").hex()


def carry_in_bulk(
    client: "ProtobufClient", tls: ssl.SSLContext, folder: Path | None = None
) -> None:
    """Has a client of Flower's use this transport wherever the way does not lead by a proxy."""
    # httpx asks those of its proxies first, which stay.
    client._client._transport.close()
    client._client._transport = BulkTransport(tls, folder)


@contextmanager
def _as_httpx(request: httpx.Request) -> Iterator[None]:
    try:
        yield
    except (HTTPError, OSError) as error:
        kind = next((at for of, at in _FAULTS if isinstance(error, of)), httpx.NetworkError)
        raise kind(str(error), request=request) from error
