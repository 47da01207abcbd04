"""Where a run ran: versions, machine, git hash and command, for its folder."""

import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("lepton-fl", "flwr", "torch", "opacus", "dp-accounting", "cryptography", "numpy")


def machine_facts() -> dict[str, object]:
    """Returns what a run folder tells of the process that made it."""
    return {
        "command": " ".join(sys.argv),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "git": _git_hash(),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def _git_hash() -> str | None:
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty"],  # noqa: S607
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
