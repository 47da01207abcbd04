"""Writes files that a crash or a power cut leaves either old or new, never torn."""

import contextlib
import errno
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lepton_common.errors import DiskFull

# A ledger's shared index is the first that finds no room; SQLite has a code of its own for it.
_SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE)


def is_full(error: BaseException) -> bool:
    """Returns whether an error says that a disk, or its owner's quota, is full."""
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", None) in _SQLITE_FULL
    full = (errno.ENOSPC, errno.EDQUOT)
    return isinstance(error, DiskFull) or (isinstance(error, OSError) and error.errno in full)


@contextlib.contextmanager
def needs_room(folder: Path) -> Iterator[None]:
    """Gives a disk that is found full in the ``with`` block its name.

    Raises:
        DiskFull: naming ``folder``.
    """
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        if isinstance(error, DiskFull) or not is_full(error):
            raise
        raise DiskFull(f"No room is left on the disk of {folder}: make room there.") from error


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replaces ``path`` by ``data``: temporary file, fsync, rename, fsync of the folder.

    Raises:
        DiskFull: it is as before.
        OSError: it cannot; the error names ``path``.
    """
    try:
        with needs_room(path.parent):
            _replace(path, data, mode)
    except DiskFull:
        raise
    except OSError as error:
        # Not the temporary file, of which the user has never heard.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _replace(path: Path, data: bytes, mode: int) -> None:
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

    Raises:
        DiskFull: ``path`` is as before.
    """
    with needs_room(path.parent), tempfile.TemporaryDirectory(dir=path.parent) as folder:
        name = Path(folder) / path.name
        try:
            os.link(written, name)
        except OSError:  # not every file system has second names
            write_atomic(path, written.read_bytes())
            return
        name.replace(path)
    sync_folder(path.parent)


def append_synced(path: Path, data: bytes) -> None:
    """Appends ``data`` to ``path`` in one write and returns once it is on disk.

    Raises:
        DiskFull: a part of it may be there.
    """
    new = not path.exists()
    with needs_room(path.parent), path.open("ab") as file:
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
