"""How the coordinator is: `/health` and `/metrics` on a loopback port, computed when asked."""

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LEAST_FREE = 1 << 30
_LONGEST_SILENCE_S = 300.0


@dataclass(frozen=True)
class Health:
    """How a coordinator is.

    Attributes:
        parts: by name, whether the process is up.
        executor_silent_s: since when the executor has given no sign of life; None before the first.
        free_bytes: on the disk that holds its folder.
        roster_version: of the roster that holds.
        roster_days_left: None for a roster without an end.
        sites: by name, whether the site attends.
        runs: number of runs, by status.
    """

    parts: dict[str, bool]
    executor_silent_s: float | None
    free_bytes: int
    roster_version: int
    roster_days_left: int | None
    sites: dict[str, bool]
    runs: dict[str, int]

    def faults(self) -> list[str]:
        """Returns what keeps the coordinator from its work, one sentence each."""
        faults = [f"The {name} is not up." for name, up in self.parts.items() if not up]
        silent = self.executor_silent_s
        if silent is None or silent > _LONGEST_SILENCE_S:
            faults.append("The executor gives no sign of life.")
        if self.free_bytes < _LEAST_FREE:
            faults.append(f"The disk has {self.free_bytes >> 20} MiB left.")
        if self.roster_days_left is not None and self.roster_days_left < 0:
            faults.append("The roster is past its last day.")
        return faults

    def document(self) -> dict[str, Any]:
        """Returns what `/health` says."""
        faults = self.faults()
        return {"ok": not faults, "faults": faults, **self.__dict__}

    def metrics(self) -> Iterator[Metric]:
        """Yields what `/metrics` says."""
        yield _gauge("healthy", "1 where nothing is wrong.", [((), not self.faults())])
        yield _gauge("part_up", "Whether a process is up.", _one_each(self.parts), "part")
        yield _gauge("site_attending", "Whether a site attends.", _one_each(self.sites), "site")
        yield _gauge("runs", "Runs by status.", _one_each(self.runs), "status")
        yield _gauge("free_bytes", "Left on the disk.", [((), self.free_bytes)])
        yield _gauge("roster_version", "Of the roster that holds.", [((), self.roster_version)])
        for name, said, value in (
            ("executor_silent_seconds", "Since its last sign of life.", self.executor_silent_s),
            ("roster_days_left", "After today.", self.roster_days_left),
        ):
            if value is not None:
                yield _gauge(name, said, [((), value)])


def free_bytes(folder: Path) -> int:
    """Returns what is left on the disk that holds a folder."""
    return shutil.disk_usage(folder).free


class SignOfLife:
    """When somebody was last heard of."""

    def __init__(self) -> None:
        self._at: float | None = None

    def give(self) -> None:
        """Is heard of now."""
        self._at = time.monotonic()

    def silent_s(self) -> float | None:
        """Returns for how long nothing was heard; None where nothing ever was."""
        return None if self._at is None else time.monotonic() - self._at


class _Collector(Collector):
    def __init__(self, look: Callable[[], Health]) -> None:
        self._look = look

    def collect(self) -> Iterable[Metric]:
        return list(self._look().metrics())


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: ANN401
        """Says nothing: a probe comes every few seconds."""


def serve_health(port: int, look: Callable[[], Health]) -> WSGIServer:
    """Answers on a loopback port, in a thread, until the server is shut down.

    Raises:
        OSError: the port is taken.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(look))
    metrics: Callable[..., Iterable[bytes]] = make_wsgi_app(registry)

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/metrics":
            return metrics(environ, start)
        if environ["PATH_INFO"] != "/health":
            start("404 Not Found", [])
            return [b""]
        health = look()
        status = "503 Service Unavailable" if health.faults() else "200 OK"
        start(status, [("Content-Type", "application/json")])
        return [json.dumps(health.document()).encode()]

    server = make_server("127.0.0.1", port, answer, _Server, _Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _one_each(values: dict[str, Any]) -> list[tuple[tuple[str, ...], float]]:
    return [((name,), float(value)) for name, value in sorted(values.items())]


def _gauge(
    name: str, said: str, values: Iterable[tuple[tuple[str, ...], float]], *labels: str
) -> Metric:
    gauge = GaugeMetricFamily(f"lepton_{name}", said, labels=labels)
    for value_labels, value in values:
        gauge.add_metric(value_labels, float(value))
    return gauge
