"""Peers that run the same jobs, each in an environment of its own that is made on first use."""

import json
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from lepton_cli.bench.simulation.jobs import Job
from lepton_cli.bench.simulation.sides import Side
from lepton_common.cache import cache_folder
from lepton_common.errors import RunError

_INSTALL_S = 3600.0


@dataclass(frozen=True)
class Peer:
    """A framework to compare with.

    Attributes:
        script: its file in ``peer_jobs``, and the name of its environment.
        requirements: what is installed there.
        label: how its job differs from ours, for the row; empty where it does not.
        start_s: longest wait for its first round, in seconds.
    """

    script: str
    requirements: tuple[str, ...]
    label: str = ""
    start_s: float = 600.0


PEERS: Mapping[str, Peer] = {
    "flower": Peer("flower_ray", ("flwr[simulation]==1.41.0", "torch==2.13.0")),
    "pfl": Peer("pfl_research", ("pfl[pytorch]==0.6.0", "torch==2.13.0")),
    "nvflare": Peer(
        "nvflare_simulator",
        ("nvflare==2.9.0", "torch==2.13.0"),
        label="its clients are the cohort of 50, each with another of the 1,000 in every round",
    ),
}


def side_of(name: str, job: Job, data: Path) -> Side:
    """Returns a peer as a side of a comparison; its environment is made where it is not there.

    Raises:
        RunError: it could not be installed.
    """
    peer = PEERS[name]
    python = _environment(peer)
    jobs = Path(str(resources.files("lepton_cli.bench").joinpath("peer_jobs")))
    return Side(
        name=name,
        command=(str(python), str(jobs / f"{peer.script}.py")),
        environment={"LEPTON_BENCH_JOB": json.dumps(job.facts(data)), "PYTHONPATH": str(jobs)},
        steps=job.steps,
        start_s=peer.start_s,
        turn_s=120.0,
    )


def _environment(peer: Peer) -> Path:
    folder = cache_folder() / "peers" / peer.script
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    stamp, wanted = folder / "installed", " ".join(peer.requirements)
    if not stamp.exists() or stamp.read_text().strip() != wanted:
        print(f"Installing {wanted} into {folder} ...", file=sys.stderr, flush=True)
        venv.create(folder, with_pip=True, clear=True)
        words = [str(python), "-m", "pip", "install", "--quiet", *peer.requirements]
        done = subprocess.run(  # noqa: S603
            words, capture_output=True, text=True, check=False, timeout=_INSTALL_S
        )
        if done.returncode != 0:
            last = done.stderr.strip().splitlines()[-1:]
            raise RunError(f"{peer.script} could not be installed: {last}")
        stamp.write_text(wanted)
    return python
