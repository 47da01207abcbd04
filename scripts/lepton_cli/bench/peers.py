"""Runs peers on the same job, each in an environment of its own that is made on first use."""

import json
import subprocess
import sys
import venv
from collections.abc import Iterator
from importlib import resources

from lepton_common.datasets.source import cache_folder
from lepton_common.errors import RunError

PEERS = {
    "flower_ray": ["flwr[simulation]==1.41.0", "torch==2.13.0"],
    "pfl_research": ["pfl[pytorch]==0.6.0", "torch==2.13.0"],
}
_ROUNDS = 4


def measure() -> Iterator[tuple[str, float]]:
    """Yields (peer, seconds a round after its first) for every peer.

    Raises:
        RunError: a peer could not be installed or run.
    """
    for peer, requirements in PEERS.items():
        folder = cache_folder() / "peers" / peer
        python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if not (folder / "installed").exists():
            venv.create(folder, with_pip=True, clear=True)
            _run([str(python), "-m", "pip", "install", "--quiet", *requirements], peer)
            (folder / "installed").touch()
        with resources.as_file(resources.files("lepton_cli.bench") / "peer_jobs") as jobs:
            output = _run([str(python), str(jobs / f"{peer}.py"), str(_ROUNDS)], peer)
        yield peer, float(json.loads(output.splitlines()[-1])["seconds_per_round"])


def _run(command: list[str], peer: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RunError(f"The peer {peer} failed: {done.stderr.strip().splitlines()[-1:]}")
    return done.stdout
