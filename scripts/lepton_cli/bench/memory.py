"""The memory of a process and all below it, summed: proportional shares, swapped ones included."""

import threading
import time
from pathlib import Path
from types import TracebackType

_EVERY_S, _NEW_EVERY_S = 0.15, 1.5  # a sample costs some milliseconds; a list of processes more


class PeakMemory:
    """Watches a tree of processes until it is left.

    Attributes:
        first: sum when it began, in bytes.
        peak: largest sum, in bytes.
        at_peak: what each process had then, in bytes, by the last words of its command.
    """

    def __init__(self, root: int) -> None:
        """Prepares to watch the process ``root`` and its descendants."""
        self._root, self._done = root, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.first = self.peak = 0
        self.at_peak: dict[str, int] = {}

    def __enter__(self) -> "PeakMemory":
        """Takes the first sample and begins."""
        self.first = sum(_sizes(_tree(self._root)).values())
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Ends."""
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        listed_at, pids = 0.0, set[int]()
        while not self._done.wait(_EVERY_S):
            if time.monotonic() - listed_at > _NEW_EVERY_S:
                listed_at, pids = time.monotonic(), _tree(self._root)
            sizes = _sizes(pids)
            total = sum(sizes.values())
            if total > self.peak:
                self.peak, self.at_peak = total, {_name(pid): size for pid, size in sizes.items()}


def _tree(root: int) -> set[int]:
    """Returns the numbers of a process and of all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name, in brackets, may hold anything.
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    found, new = {root}, {root}
    while new:
        new = {pid for pid, parent in parents.items() if parent in new} - found
        found |= new
    return found


def _sizes(pids: set[int]) -> dict[int, int]:
    """Returns the proportional set size of each of some processes that lives, in bytes.

    What was swapped out counts: it is held as much as the rest.
    """
    sizes = {}
    for pid in pids:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        held = (line for line in lines if line.startswith(("Pss:", "SwapPss:")))
        sizes[pid] = sum(1024 * int(line.split()[1]) for line in held)
    return sizes


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return f"{pid}"
    return f"{pid} " + " ".join(Path(word).name for word in words[:4])
