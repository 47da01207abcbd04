"""What each site of a host released, a line each, in a file whose parts signed records name.

A record of the log holds the Merkle root of the lines, so that one signature covers a whole chunk
of sites, and each line can be shown without the others.
"""

import json
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lepton_common.durable import append_synced
from lepton_common.errors import AuditError
from lepton_common.merkle import merkle_root

LEAVES = "releases.leaves"


class Leaves:
    """The file; written before the record that names its part, on disk when `add` returns."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()

    def add(self, lines: Sequence[bytes]) -> dict[str, Any]:
        """Appends lines and returns what a record has to say of them.

        Bytes that a crash left behind stay: no record names them.

        Raises:
            DiskFull, OSError: the disk is full, or gone; no record may be written.
        """
        data = b"\n".join(lines) + b"\n"
        with self._lock:
            start = self._path.stat().st_size if self._path.exists() else 0
            try:
                append_synced(self._path, data)
            except OSError:
                if self._path.is_file():
                    os.truncate(self._path, start)
                raise
        return {"root": merkle_root(lines), "at": start, "length": len(data), "sites": len(lines)}


def read_leaves(path: Path, body: dict[str, Any]) -> Iterator[list[Any]]:
    """Yields what the lines say that a record's body names, verified.

    Raises:
        AuditError: they are gone, or are not those of the record.
    """
    try:
        with path.open("rb") as file:
            file.seek(int(body["at"]))
            data = file.read(int(body["length"]))
    except (OSError, ValueError, KeyError) as error:
        raise AuditError(f"Cannot read {path}, which the log names.") from error
    lines = data.removesuffix(b"\n").split(b"\n")
    if len(lines) != body["sites"] or merkle_root(lines) != body["root"]:
        raise AuditError(f"{path}: the releases at byte {body['at']} were altered.")
    for line in lines:
        yield json.loads(line)
