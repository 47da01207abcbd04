"""The way to the coordinator, looked at step by step: name, connection, TLS, and its clock."""

import socket
import ssl
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from lepton_common.errors import ServerUnreachable
from lepton_common.identity.certificates import Leaf
from lepton_common.identity.roster import Coordinator

_WAIT_S = 10.0


@dataclass(frozen=True)
class Answer:
    """What the coordinator's port answered.

    Attributes:
        status: of HTTP; who is known there is told 404, who is not 400.
        date: by its clock; None where it gave none.
    """

    status: int
    date: datetime | None


def way_to(coordinator: Coordinator) -> tuple[str, int, bool]:
    """Returns host and port that a connection goes to first, and whether that is a proxy."""
    host, port = coordinator.hosts[0], coordinator.port
    proxy = urllib.request.getproxies().get("https")
    if not proxy or urllib.request.proxy_bypass(f"{host}:{port}"):
        return host, port, False
    parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or 80, True


def resolve(host: str, port: int) -> list[str]:
    """Returns the addresses of a host.

    Raises:
        ServerUnreachable: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ServerUnreachable(f"The name {host} has no address ({error}).") from None
    return sorted({str(address[0]) for *_, address in found})


def connect(host: str, port: int) -> None:
    """Connects, and says nothing.

    Raises:
        ServerUnreachable: nobody answers there.
    """
    try:
        socket.create_connection((host, port), _WAIT_S).close()
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise ServerUnreachable(f"{host}:{port} takes no connection ({why}).") from None


def ask(coordinator: Coordinator, leaf: Leaf) -> Answer:
    """Asks for a page that is not there, as the site, and trusting the coordinator alone.

    Raises:
        ServerUnreachable: no mutual TLS comes about, or no answer by HTTP.
    """
    url = f"https://{coordinator.hosts[0]}:{coordinator.port}/"
    try:
        with _tls(coordinator, leaf) as context, httpx.Client(verify=context) as client:
            answer = client.get(url, timeout=_WAIT_S)
    except (httpx.HTTPError, OSError) as error:
        raise ServerUnreachable(f"No answer by mutual TLS: {error}.") from None
    date = answer.headers.get("date")
    try:
        return Answer(answer.status_code, parsedate_to_datetime(date) if date else None)
    except ValueError:
        return Answer(answer.status_code, None)


@contextmanager
def _tls(coordinator: Coordinator, leaf: Leaf) -> Iterator[ssl.SSLContext]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=coordinator.authority)
    with tempfile.TemporaryDirectory(prefix="lepton-doctor-") as folder:
        path = Path(folder) / "tls.pem"
        path.touch(0o600)
        path.write_bytes(leaf.certificate + leaf.private_key)
        context.load_cert_chain(path)
    yield context
