"""The memory of a process and all below it: their proportional set sizes, sampled and summed."""

import threading
from pathlib import Path
from types import TracebackType

_EVERY_S = 0.1


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
        self.first = sum(_sizes(self._root).values())
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
        while not self._done.wait(_EVERY_S):
            sizes = _sizes(self._root)
            total = sum(sizes.values())
            if total > self.peak:
                self.peak, self.at_peak = total, {_name(pid): size for pid, size in sizes.items()}


def _sizes(root: int) -> dict[int, int]:
    """Returns the proportional set size of each living process below ``root``, in bytes."""
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
    sizes = {}
    for pid in found:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        sizes[pid] = sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return sizes


def _name(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return f"{pid}"
    return f"{pid} " + " ".join(Path(word).name for word in words[:4])
