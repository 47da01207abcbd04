"""`lepton server start`: starts the coordinator's parts, and starts each again that dies.

SuperLink (loopback, its state in memory, models in files) <- proxy (nginx, the one public port) <-
the world; the executor runs the ServerApp; the control service is in this process. What matters is
on disk: a run that was cut off goes on from its last finished round.
"""

import logging
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from lepton_common.audit import AuditLog
from lepton_common.durable import write_atomic
from lepton_common.errors import ServerFailed
from lepton_common.flower.superlink import SuperLink
from lepton_common.identity.certificates import LIFETIME, Leaf, issue_leaf
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import read_roster_files
from lepton_server.gateway.control import Control, serve
from lepton_server.gateway.nodes import KnownNode, write_nodes
from lepton_server.gateway.parts import Part, start_part, stop_part
from lepton_server.gateway.proxy import SUPERLINK_NAME, configure, start_proxy
from lepton_server.gateway.runs import Runs

KEY_FILE, ROSTER_FILE, ROOT_FILE, AUDIT_FILE = (
    "signing.pem", "roster.json", "roster.root", "audit.jsonl",
)  # fmt: skip
_START_S, _LOOK_S = 30.0, 0.2
_LOG = logging.getLogger("lepton.server")


class Server:
    """A coordinator, from its folder."""

    def __init__(self, folder: Path, passphrase: str | None = None) -> None:
        """Opens the folder.

        Raises:
            IdentityError: key or roster are not good.
            ServerFailed: the roster names another coordinator.
        """
        self.folder = folder.resolve()
        self.key = SigningKey.load(folder / KEY_FILE, passphrase)
        self.roster = read_roster_files(folder / ROSTER_FILE, folder / ROOT_FILE)
        self.roster.check_date(datetime.now(UTC).date())
        coordinator = self.roster.coordinator
        if coordinator is None or coordinator.public_key != self.key.public_hex:
            raise ServerFailed("The roster names another coordinator than this one.")
        self.coordinator = coordinator
        self._private = self.folder / "gateway"
        self._private.mkdir(mode=0o700, exist_ok=True)
        self.audit = AuditLog(folder / AUDIT_FILE, self.key, coordinator.name)
        self.runs = Runs(self.folder / "runs")
        self._secret = secrets.token_bytes(32)
        self._port = _free_port()
        self._link: SuperLink | None = None
        self._started: dict[str, int] = {}
        self._parts: dict[str, Part] = {}
        self._renew_at = datetime.now(UTC)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Keeps everything up until it is told to stop.

        Raises:
            ServerFailed: a part does not start at all.
        """
        write_atomic(self._private / "secret", self._secret, mode=0o600)
        control = Control(
            self.runs, self.roster, self.folder / ROSTER_FILE, self.folder / ROOT_FILE, self.audit
        )
        service = serve(control, self._private / "control.sock")
        try:
            while not stopped():
                self._look_after()
                time.sleep(_LOOK_S)
        finally:
            service.stop(1.0).wait()
            self._stop(*list(self._parts))

    def _look_after(self) -> None:
        if datetime.now(UTC) >= self._renew_at:
            self._renew()
        if self._gone("superlink"):
            self._start_superlink()
        if self._gone("proxy"):
            self._parts["proxy"] = start_proxy(self._private / "nginx.conf")
        if self._gone("executor"):
            self._started.clear()  # what it worked at must be started again
            self._parts["executor"] = self._start_executor()
        self._start_runs()

    def _gone(self, name: str) -> bool:
        part = self._parts.get(name)
        if part is not None and part.poll() is not None:
            _LOG.warning("The %s ended with code %s; it is started again.", name, part.returncode)
            stop_part(part)
            return True
        return part is None

    def _renew(self) -> None:
        """Issues certificates anew, long before they end."""
        leaf = issue_leaf(self.key, self.coordinator.name, self.coordinator.hosts)
        own = issue_leaf(self.key, self.coordinator.name, ["127.0.0.1", SUPERLINK_NAME])
        configure(self._private, self.roster, f"127.0.0.1:{self._port}", leaf)
        self._write(own)
        if "proxy" in self._parts:
            self._stop("proxy", "superlink")
        self._renew_at = datetime.now(UTC) + LIFETIME / 2 - timedelta(minutes=5)

    def _write(self, own: Leaf) -> None:
        write_atomic(self._private / "superlink.crt", own.certificate, mode=0o600)
        write_atomic(self._private / "superlink.key", own.private_key, mode=0o600)

    def _start_superlink(self) -> None:
        """Starts it with an empty memory, and lets the roster's nodes in again."""
        private = self._private
        words = [
            sys.executable, "-m", "lepton_common.flower.superlink_process",
            str(private / "objects"),
            "--host", "127.0.0.1", "--port", str(self._port),
            "--ssl-certfile", str(private / "superlink.crt"),
            "--ssl-keyfile", str(private / "superlink.key"),
            "--ssl-ca-certfile", str(private / "own.crt"),
            "--isolation", "process", "--superexec-auth-secret-file", str(private / "secret"),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--log-file", str(private / "superlink.log"),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "FLWR_HOME": str(private / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
        }
        self._parts["superlink"] = start_part(
            words, at_death="KILL", environment=environment, output=subprocess.DEVNULL
        )
        authority = self.coordinator.authority
        self._link = self._when_up(lambda: self._connect(authority))
        self._started.clear()
        if "executor" in self._parts:
            self._stop("executor")  # its task is unknown to the new one

    def _connect(self, authority: str) -> SuperLink:
        link = SuperLink(f"127.0.0.1:{self._port}", authority, self._secret)
        try:
            nodes = [
                KnownNode(
                    node=link.register(member.name, member.node_key),
                    name=member.name,
                    public_key=member.public_key,
                )
                for member in self.roster.members
            ]
        except BaseException:
            link.close()
            raise
        write_nodes(self.folder, nodes)
        return link

    def _when_up(self, connect: Callable[[], SuperLink]) -> SuperLink:
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._parts["superlink"].poll() is None:
            with suppress(httpx.TransportError):
                return connect()
            time.sleep(0.1)
        raise ServerFailed(
            f"The SuperLink does not come up; see {self._private / 'superlink.log'}."
        )

    def _start_executor(self) -> Part:
        words = [sys.executable, "-m", "lepton_server.gateway.executor", str(self.folder)]
        return start_part([*words, f"127.0.0.1:{self._port}"], at_death="KILL")

    def _start_runs(self) -> None:
        """Starts the oldest run that has not ended; the others wait for it."""
        assert self._link is not None
        for name in self.runs.unfinished()[:1]:
            if name not in self._started:
                self._started[name] = self._link.start_run({"run": name})

    def _stop(self, *names: str) -> None:
        for name in names:
            if part := self._parts.pop(name, None):
                stop_part(part)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
