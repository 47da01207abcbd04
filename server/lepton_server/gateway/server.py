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
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx

from lepton_common.audit import AuditLog
from lepton_common.durable import write_atomic
from lepton_common.errors import ServerFailed
from lepton_common.flower.bulk_transport import SECRET
from lepton_common.flower.superlink import SuperLink
from lepton_common.identity.certificates import LIFETIME, Leaf, issue_leaf
from lepton_common.identity.keys import SigningKey
from lepton_common.identity.roster import Member
from lepton_server.gateway.control import Control
from lepton_server.gateway.health import Health, SignOfLife, free_bytes, serve_health
from lepton_server.gateway.nodes import KnownNode, write_nodes
from lepton_server.gateway.parts import Part, start_part, stop_part
from lepton_server.gateway.proxy import (
    SUPERLINK_NAME,
    clear_bodies,
    configure,
    reload_proxy,
    start_proxy,
)
from lepton_server.gateway.published import Published
from lepton_server.gateway.runs import Runs
from lepton_server.gateway.serving import SOCKET, serve
from lepton_server.gateway.sites import Inside, Sites
from lepton_server.gateway.witness import Witness

KEY_FILE, AUDIT_FILE = "signing.pem", "audit.jsonl"
_OLD_S = 600.0  # no request takes so long
_START_S, _LOOK_S = 120.0, 0.2  # one that has died is seen at once; a busy machine takes its time
_LOG = logging.getLogger("lepton.server")


class Server:
    """A coordinator, from its folder."""

    def __init__(
        self, folder: Path, passphrase: str | None = None, metrics_port: int | None = None
    ) -> None:
        """Opens the folder.

        Args:
            folder: the coordinator's.
            passphrase: of its key, where that is sealed.
            metrics_port: loopback port for `/metrics` and `/health`; None for none.

        Raises:
            IdentityError: key or roster are not good.
            ServerFailed: the roster names another coordinator.
        """
        self.folder = folder.resolve()
        self.key = SigningKey.load(folder / KEY_FILE, passphrase)
        self.published = Published(self.folder, self.key.public_hex)
        self._private = self.folder / "gateway"
        self._private.mkdir(mode=0o700, exist_ok=True)
        self.audit = AuditLog(folder / AUDIT_FILE, self.key, self.published.coordinator.name)
        self.runs = Runs(self.folder / "runs")
        witness = Witness(self.folder, self.key, self.published, self.audit)
        self.sites = Sites(self.runs, self.published, witness)
        self._executor = SignOfLife()
        self._metrics_port = metrics_port
        self._secret = secrets.token_bytes(32)
        self._port = _free_port()
        self._link: SuperLink | None = None
        self._started: dict[str, int] = {}
        self._parts: dict[str, Part] = {}
        self._nodes: dict[Member, KnownNode] = {}
        self._renew_at = datetime.now(UTC)

    def run(self, stopped: Callable[[], bool]) -> None:
        """Keeps everything up until it is told to stop.

        Raises:
            ServerFailed: a part does not start at all.
        """
        write_atomic(self._private / SECRET, self._secret, mode=0o600)
        service = serve(
            self._private / SOCKET,
            Control=Control(self.runs, self.sites, self.published, self.audit),
            Sites=self.sites,
            Inside=Inside(self.sites, self._executor),
        )
        clear_bodies(self._private, 0.0)  # of an earlier coordinator, however it ended
        port = self._metrics_port
        told = serve_health(port, self.health) if port is not None else None
        try:
            while not stopped():
                self._look_after()
                time.sleep(_LOOK_S)
        finally:
            if told is not None:
                told.shutdown()
                told.server_close()
            self.sites.close()
            service.stop(1.0).wait()
            self._stop(*list(self._parts))

    def health(self) -> Health:
        """Returns how the coordinator is."""
        parts = {name: self._parts.get(name) for name in ("superlink", "proxy", "executor")}
        attending = set(self.sites.attending())
        roster = self.published.roster
        return Health(
            parts={name: part is not None and part.poll() is None for name, part in parts.items()},
            executor_silent_s=self._executor.silent_s(),
            free_bytes=free_bytes(self.folder),
            roster_version=roster.version,
            roster_days_left=self.published.days_left(),
            sites={member.name: member.name in attending for member in roster.members},
            runs=Counter(self.runs.state(name).status for name in self.runs.names()),
        )

    def _look_after(self) -> None:
        if self.published.look():
            self._follow()
        if datetime.now(UTC) >= self._renew_at:
            self._renew()
        if self._gone("superlink"):
            self._start_superlink()
        if self._link is None:
            return  # it was killed before it was up
        if self._gone("proxy"):
            clear_bodies(self._private, _OLD_S)
            self._parts["proxy"] = start_proxy(self._private / "nginx.conf")
        if self._gone("executor"):
            clear_bodies(self._private, _OLD_S)
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

    def _follow(self) -> None:
        """Lets in whom a newer roster names, and out whom it does not; and tells all sites."""
        roster = self.published.roster
        _LOG.info("Version %d of the roster and the studies beside it hold.", roster.version)
        self.audit.append("published", {
            "roster": roster.version,
            "studies": {study.name: study.version for study, _ in self.published.studies.values()},
        })  # fmt: skip
        self._configure()
        if "proxy" in self._parts:
            reload_proxy(self._parts["proxy"], self._private / "nginx.conf")
        if self._link is not None:
            try:
                self._admit(self._link)
            except httpx.HTTPStatusError:
                # Flower takes no node back that it has let out.
                self._stop("superlink")
            except httpx.TransportError:
                _LOG.warning("The SuperLink is gone; the next one lets the roster's nodes in.")
        self.sites.published()

    def _renew(self) -> None:
        """Issues certificates anew, long before they end."""
        name = self.published.coordinator.name
        self._configure()
        self._write(issue_leaf(self.key, name, ["127.0.0.1", SUPERLINK_NAME]))
        if "proxy" in self._parts:
            self._stop("proxy", "superlink")
        self._renew_at = datetime.now(UTC) + LIFETIME / 2 - timedelta(minutes=5)

    def _configure(self) -> None:
        coordinator = self.published.coordinator
        leaf = issue_leaf(self.key, coordinator.name, coordinator.hosts)
        configure(self._private, self.published.roster, f"127.0.0.1:{self._port}", leaf)

    def _write(self, own: Leaf) -> None:
        write_atomic(self._private / "superlink.crt", own.certificate, mode=0o600)
        write_atomic(self._private / "superlink.key", own.private_key, mode=0o600)

    def _start_superlink(self) -> None:
        """Starts it with an empty memory, and lets the roster's nodes in again."""
        private = self._private
        words = [
            sys.executable, "-m", "lepton_common.flower.superlink_process",
            str(private),
            "--host", "127.0.0.1", "--port", str(self._port),
            "--ssl-certfile", str(private / "superlink.crt"),
            "--ssl-keyfile", str(private / "superlink.key"),
            "--ssl-ca-certfile", str(private / "own.crt"),
            "--isolation", "process", "--superexec-auth-secret-file", str(private / SECRET),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--log-file", str(private / "superlink.log"),
        ]  # fmt: skip
        environment = {
            **os.environ,
            "FLWR_HOME": str(private / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # Else each of its threads holds on to pieces of models.
            "MALLOC_ARENA_MAX": "1",
        }
        self._link = None
        self._parts["superlink"] = start_part(
            words, at_death="KILL", environment=environment, output=subprocess.DEVNULL
        )
        authority = self.published.coordinator.authority
        self._link = self._when_up(lambda: self._connect(authority))
        self._started.clear()
        if "executor" in self._parts:
            self._stop("executor")  # its task is unknown to the new one

    def _connect(self, authority: str) -> SuperLink:
        link = SuperLink(f"127.0.0.1:{self._port}", authority, self._secret)
        self._nodes = {}
        try:
            self._admit(link)
        except BaseException:
            link.close()
            raise
        return link

    def _admit(self, link: SuperLink) -> None:
        """Lets nodes in and out until they are the roster's."""
        members = self.published.roster.members
        for gone in set(self._nodes) - set(members):
            link.unregister(self._nodes.pop(gone).node)
        for member in members:
            if member not in self._nodes:
                self._nodes[member] = KnownNode(
                    node=link.register(member.name, member.node_key),
                    name=member.name,
                    public_key=member.public_key,
                )
        write_nodes(self.folder, list(self._nodes.values()))

    def _when_up(self, connect: Callable[[], SuperLink]) -> SuperLink | None:
        """Returns what connects to the SuperLink; None where somebody has killed it meanwhile."""
        deadline = time.monotonic() + _START_S
        while time.monotonic() < deadline and self._parts["superlink"].poll() is None:
            with suppress(httpx.TransportError):
                return connect()
            time.sleep(0.1)
        if (self._parts["superlink"].poll() or 0) < 0:
            return None
        raise ServerFailed(
            f"The SuperLink does not come up; see {self._private / 'superlink.log'}."
        )

    def _start_executor(self) -> Part:
        words = [sys.executable, "-m", "lepton_server.gateway.executor", str(self.folder)]
        return start_part([*words, f"127.0.0.1:{self._port}"], at_death="KILL")

    def _start_runs(self) -> None:
        """Starts the oldest run that has not ended; the others wait for it."""
        assert self._link is not None, "the look before has started it"
        for name in self.runs.unfinished()[:1]:
            if name not in self._started:
                with suppress(httpx.TransportError):  # it was killed; the next look finds out
                    self._started[name] = self._link.start_run({"run": name})

    def _stop(self, *names: str) -> None:
        for name in names:
            if part := self._parts.pop(name, None):
                stop_part(part)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
