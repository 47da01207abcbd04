"""`lepton site start`: fetches what the coordinator asks, has the site answer it, and sends that.

Connections go out only. Whatever the network does, the agent goes on trying: each message is
answered once, and its answer sent until the coordinator has it. Whatever the server sends, the
ClientApp that is installed here answers, and nothing else.
"""

import logging
import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
from flwr.app import Context, Message
from google.protobuf.message import DecodeError

from lepton_client.answered import Answered
from lepton_client.app import app
from lepton_client.attendance import Attendance, connector
from lepton_client.outbox import Outbox
from lepton_client.site import Site, open_site
from lepton_common.durable import write_atomic
from lepton_common.errors import MalformedMessage, SettingsError, TokenGone
from lepton_common.flower.fleet import HEARTBEAT_S, FleetNode
from lepton_common.flower.parcel import Parcel
from lepton_common.flower.task_identity import speak_for
from lepton_common.identity.certificates import LIFETIME, Leaf, issue_leaf
from lepton_common.identity.roster import Coordinator
from lepton_common.identity.sealed import sign_reply
from lepton_common.messages import forget_model
from lepton_common.pages import give_back_freed_memory, keep_freed_pieces

NODE_KEY_FILE, _NODE_ID_FILE = "node.pem", "node.id"
_LOG = logging.getLogger("lepton.agent")
# It cannot be reached, or what answers in its place speaks another language.
_NO_COORDINATOR = (httpx.HTTPError, OSError, ValueError, DecodeError, MalformedMessage)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


def run_agent(folder: Path, stopped: Callable[[], bool], passphrase: str | None = None) -> None:
    """Works for a site until it is told to stop.

    Args:
        folder: the site's.
        stopped: whether to stop.
        passphrase: of the site's sealed key, or the PIN of its token.

    Raises:
        IdentityError: key or roster are not good, or the roster does not name this site, or does
            so no more.
        TokenGone: the token with the site's key was pulled out.
        AuditRolledBack, LedgerRolledBack: the site's logs lack what others have witnessed.
        SettingsError: the site file has faults.
        PackageAltered: nobody can tell which models are approved.
    """
    site = open_site(str(folder), passphrase)
    for name in ("trainer", "launch"):
        if getattr(site.file, name) is None:
            raise SettingsError(f"site.yaml has no section '{name}'; docs/deployment.md shows it.")
    site.note_models()
    site.note_policy()
    keep_freed_pieces()
    outbox, wait_s = Outbox(folder, site.key), _FIRST_WAIT_S
    while not stopped():
        coordinator = site.coordinator()
        leaf = issue_leaf(site.key, site.file.name, lifetime=LIFETIME + timedelta(hours=1))
        try:
            with Attendance(site, connector(coordinator, leaf), site.stop_training) as attendance:
                attendance.begin(stopped)
                with FleetNode(
                    f"https://{coordinator.hosts[0]}:{coordinator.port}",
                    _tls(site, coordinator, leaf),
                    folder / NODE_KEY_FILE,
                    _last_id(folder),
                    stopped,
                ) as node:
                    _LOG.info("Connected to %s as node %d.", coordinator.name, node.node_id)
                    wait_s = _FIRST_WAIT_S
                    write_atomic(folder / _NODE_ID_FILE, str(node.node_id).encode())
                    _serve(node, site, outbox, attendance, stopped)
        except _NO_COORDINATOR as error:
            _LOG.warning(
                "There is no connection to the coordinator (%s); next try in %.1f s. "
                "'lepton site doctor' tells what is in the way.",
                _what(error),
                wait_s,
            )
            _sleep(wait_s, stopped)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _serve(
    node: FleetNode, site: Site, outbox: Outbox, attendance: Attendance, stopped: Callable[[], bool]
) -> None:
    """Answers messages until the certificate is due for renewal."""
    until, run = datetime.now(UTC) + LIFETIME / 2, None
    done = threading.Event()
    heart = threading.Thread(target=_beat, args=(node, done), daemon=True)
    heart.start()
    answered = Answered(site.audit)
    try:
        outbox.send_on(node)  # what the last connection did not carry to its end
        while not stopped() and datetime.now(UTC) < until:
            attendance.looking()
            message = node.receive(answered.__contains__)
            if message is None:
                attendance.wait(stopped)
                continue
            if message.metadata.run_id != run:
                run = message.metadata.run_id
                give_back_freed_memory()
            _answer(node, message, site, outbox)
            del message  # while the answer leaves, and the next one comes
            outbox.send_on(node)
            attendance.released()
    finally:
        done.set()
        heart.join(HEARTBEAT_S)


def _answer(node: FleetNode, message: Message, site: Site, outbox: Outbox) -> None:
    """Puts the answer to a message in the outbox."""
    began = time.monotonic()
    speak_for(message.metadata.run_id, node.node_id)
    context = node.context(message.metadata.run_id, {"site": str(site.folder)})
    reply = _reply(message, context, site)
    if message.has_content():
        # A model, perhaps, for which there may be no room beside the reply.
        message.content.clear()
        forget_model()
    sign_reply(reply, site.key)
    if reply.has_error() and reply.error.reason == TokenGone.__name__:
        raise TokenGone("The token with this site's key was pulled out; put it in, start again.")
    parcel = Parcel.of(reply, time.monotonic() - began)
    outbox.put(parcel, durable=_is_unique(parcel, site))


def _is_unique(parcel: Parcel, site: Site) -> bool:
    """Says whether an answer was charged for, or is of a masked sum: it cannot be made again."""
    releases = (r.body for r in reversed(site.audit.records) if r.kind == "release")
    last = next(releases, {"reply_to": None})
    return last["reply_to"] == parcel.reply_to and (last["charge"] is not None or "spec" in last)


def _reply(message: Message, context: Context, site: Site) -> Message:
    try:
        return app(message, context)
    except ValueError as error:  # Flower's: the app has no answer to messages of this kind
        with site.lock:
            site.keep_trace(error)
            return site.door.refuse(message, MalformedMessage("There is no answer to its kind."))


def _last_id(folder: Path) -> int | None:
    try:
        return int((folder / _NODE_ID_FILE).read_text())
    except (OSError, ValueError):
        return None


def _beat(node: FleetNode, done: threading.Event) -> None:
    while not done.wait(HEARTBEAT_S / 2):
        try:
            node.beat()
        except _NO_COORDINATOR as error:
            _LOG.warning("No heartbeat reaches the coordinator (%s).", _what(error))


def _tls(site: Site, coordinator: Coordinator, leaf: Leaf) -> ssl.SSLContext:
    """Returns a context with the site's certificate, which trusts the coordinator alone."""
    path = site.folder / "tls.pem"
    write_atomic(path, leaf.certificate + leaf.private_key, mode=0o600)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=coordinator.authority)
    context.load_cert_chain(path)
    return context


def _what(error: BaseException) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__


def _sleep(seconds: float, stopped: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until and not stopped():
        time.sleep(0.1)
