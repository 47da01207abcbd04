"""Flower's stock deployment on this machine, as its documents start it, with TLS."""

import contextlib
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import resources
from pathlib import Path

import httpx

from lepton_cli.bench.measured import Measured, free_port, measure_rounds, started
from lepton_cli.bench.square import parameters_of
from lepton_common.errors import RunError
from lepton_common.identity.certificates import issue_leaf, make_authority
from lepton_common.identity.keys import SigningKey

_NAME, _UP_S = "bench", 60.0


class StockFlower:
    """A SuperLink with its SuperNodes, which are up."""

    def __init__(self, folder: Path, superlink: int) -> None:
        self._folder, self._superlink = folder, superlink

    def measure(self, megabytes: int, sites: int, rounds: int) -> Measured:
        """Runs some rounds of plain FedAvg on a model of that size.

        Raises:
            RunError: it was not accepted, or did not come to its end.
        """
        marks = self._folder / f"marks-{megabytes}"
        marks.touch()
        settings = {
            "parameters": parameters_of(megabytes),
            "rounds": rounds,
            "sites": sites,
            "marks": f"'{marks}'",
        }
        words = " ".join(f"{name}={value}" for name, value in settings.items())
        with resources.as_file(resources.files("lepton_cli.bench") / "peer_jobs") as jobs:
            submitted = subprocess.run(  # noqa: S603
                [
                    str(Path(sys.executable).with_name("flwr")),
                    "run",
                    str(jobs / "flower_app"),
                    _NAME,
                    "--run-config",
                    words,
                ],
                env={**os.environ, **_environment(self._folder / "cli")},
                capture_output=True,
                text=True,
                check=False,
            )
        if submitted.returncode:
            raise RunError(f"Flower took no run: {submitted.stderr.strip()[-500:]}")
        # The first mark is of the model before all rounds.
        return measure_rounds(
            self._superlink,
            rounds,
            lambda: max(0, len(marks.read_text().splitlines()) - 1),
            lambda: None,
        )


@contextmanager
def stock_flower(sites: int) -> Iterator[StockFlower]:
    """Gives Flower's deployment with that many sites, and ends it.

    Raises:
        RunError: it did not come up.
    """
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as processes:
        folder, port = Path(name), free_port()
        address, authority = f"127.0.0.1:{port}", folder / "ca.crt"
        key = SigningKey.generate()
        leaf = issue_leaf(key, _NAME, ["127.0.0.1"])
        authority.write_text(make_authority(key, _NAME))
        (folder / "server.crt").write_bytes(leaf.certificate)
        (folder / "server.key").write_bytes(leaf.private_key)
        superlink = processes.enter_context(
            _started(
                folder,
                ["flower-superlink", "--host", "127.0.0.1", "--port", str(port),
                 "--ssl-certfile", "server.crt", "--ssl-keyfile", "server.key",
                 "--ssl-ca-certfile", "ca.crt", "--disable-runtime-dependency-installation"],
            )
        )  # fmt: skip
        _wait_for(f"https://{address}/health", authority)
        for index in range(sites):
            words = ["flower-supernode", "--superlink", address, "--root-certificates", "ca.crt",
                     "--host", "127.0.0.1", "--port", str(free_port())]  # fmt: skip
            processes.enter_context(_started(folder, words, f"site-{index}"))
        (folder / "cli").mkdir(exist_ok=True)
        (folder / "cli" / "config.toml").write_text(
            f'[superlink]\ndefault = "{_NAME}"\n[superlink.{_NAME}]\n'
            f'address = "{address}"\nroot-certificates = "{authority}"\n'
        )
        yield StockFlower(folder, superlink)


def _started(
    folder: Path, words: list[str], home: str = "superlink"
) -> AbstractContextManager[int]:
    return started(words, folder, f"{home}.log", _environment(folder / home))


def _wait_for(url: str, authority: Path) -> None:
    context = ssl.create_default_context(cafile=str(authority))
    deadline = time.monotonic() + _UP_S
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.TransportError):
            httpx.get(url, verify=context)
            return
        time.sleep(0.2)
    raise RunError("Flower's SuperLink does not come up.")


def _environment(home: Path) -> dict[str, str]:
    """Returns an environment in which Flower finds its own commands, and tells nobody of itself."""
    home.mkdir(exist_ok=True)
    return {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
    }
