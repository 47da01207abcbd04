"""Writes files that a crash or a power cut leaves either old or new, never torn."""

import os
import tempfile
from pathlib import Path


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces ``path`` by ``data``: temporary file, fsync, rename, fsync of the folder.

    Raises:
        OSError: it cannot; the error names ``path``.
    """
    try:
        _write_atomic(path, data, mode)
    except OSError as error:
        # Not the temporary file, of which the user has never heard.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _write_atomic(path: Path, data: bytes, mode: int) -> None:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def link_atomic(written: Path, path: Path) -> None:
    """Replaces ``path`` by another name of the file ``written``, which is on disk already.

    Each is whole whatever becomes of the other: files are replaced here, never written over.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        name = Path(folder) / path.name
        try:
            os.link(written, name)
        except OSError:  # not every file system has second names
            write_atomic(path, written.read_bytes())
            return
        name.replace(path)
    sync_folder(path.parent)


def append_synced(path: Path, data: bytes) -> None:
    """Appends ``data`` to ``path`` in one write and returns once it is on disk."""
    new = not path.exists()
    with path.open("ab") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes a rename in ``folder`` durable; systems that cannot open folders need no such step."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
