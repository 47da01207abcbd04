"""Cuts a process off: no network, no other process, and of the site's folder only its data.

By Linux namespaces, as `unshare` of util-linux makes them, for root and others alike. A trainer
runs code that was installed and approved at the site; this is for the day when that was a mistake.
"""

import functools
import shutil
import subprocess
from pathlib import Path

from lepton_common.errors import IsolationUnavailable

# The folder is hidden under an empty one, in which only what is named stands again. The working
# directory still leads to the real one until it is left.
_HIDE = """set -eu
folder=$1; shift
cd "$folder"
mount -t tmpfs -o mode=755 lepton "$folder"
while [ "$1" != -- ]; do
  if [ -d "./$1" ]; then mkdir -p "$folder/$1"; else
    mkdir -p "$(dirname "$folder/$1")"; : >"$folder/$1"; fi
  mount --no-canonicalize --bind "./$1" "$folder/$1"
  shift
done
shift
mount -o remount,bind,ro "$folder"
cd /
exec "$@"
"""
# With a user namespace too, so that nobody need be root.
_UNSHARED = [
    "setpriv", "--pdeathsig", "KILL",
    "unshare", "--user", "--map-root-user", "--net", "--mount", "--ipc",
    "--pid", "--fork", "--kill-child", "--mount-proc", "--",
]  # fmt: skip
_POWERLESS = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]


def cut_off(words: list[str], folder: Path, keep: list[str]) -> list[str]:
    """Returns the command that runs ``words`` cut off; it ends when whoever started it does.

    Args:
        words: a command.
        folder: the site's; hidden.
        keep: what stays to be seen of it, relative paths.

    Raises:
        IsolationUnavailable: this system does not allow that.
    """
    fault = _fault()
    if fault is not None:
        raise IsolationUnavailable(
            f"A process cannot be cut off here ({fault}); allow user namespaces, or set "
            "trainer.isolation to 'process' in site.yaml."
        )
    return [*_UNSHARED, "sh", "-c", _HIDE, "sh", str(folder), *keep, "--", *_POWERLESS, *words]


def bound(words: list[str]) -> list[str]:
    """Returns the command that runs ``words`` until whoever started it ends."""
    return ["setpriv", "--pdeathsig", "KILL", "--", *words] if shutil.which("setpriv") else words


@functools.cache
def _fault() -> str | None:
    """Returns why processes cannot be cut off here; None where they can."""
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"there is no {tool}; install util-linux"
    tried = subprocess.run([*_UNSHARED, "true"], capture_output=True, text=True, check=False)  # noqa: S603
    if tried.returncode == 0:
        return None
    return (tried.stderr.strip() or f"unshare ended with {tried.returncode}").splitlines()[-1]
