"""What a third-party app prints: on the screen as it comes, and kept in a file."""

import contextlib
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class _Both(io.TextIOBase):
    """A stream that is shown and kept; ``sys.stdout`` for the time of a run."""

    def __init__(self, shown: TextIO, kept: TextIO) -> None:
        self._shown, self._kept = shown, kept

    def write(self, text: str) -> int:
        self._kept.write(_COLOURS.sub("", text))
        self._shown.write(text)
        return len(text)

    def flush(self) -> None:
        self._kept.flush()
        self._shown.flush()

    def isatty(self) -> bool:
        return self._shown.isatty()

    def fileno(self) -> int:
        return self._shown.fileno()

    def writable(self) -> bool:
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._shown.encoding


@contextlib.contextmanager
def logged(path: Path, *, quiet: bool) -> Iterator[None]:
    """Keeps a copy of standard output, standard error and Flower's log in a file.

    Args:
        path: the file.
        quiet: nothing comes to standard output, which is for one JSON document then.
    """
    logger = logging.getLogger("flwr")
    level, streams = logger.level, {}
    with path.open("w", encoding="utf-8", buffering=1) as kept:
        errors = _Both(sys.stderr, kept)
        told = errors if quiet else _Both(sys.stdout, kept)
        # As a Flower user knows it, whatever ran in this process before.
        logger.setLevel(logging.INFO)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                streams[handler] = handler.setStream(errors)
        try:
            with contextlib.redirect_stdout(told), contextlib.redirect_stderr(errors):
                yield
        finally:
            logger.setLevel(level)
            for handler, stream in streams.items():
                handler.setStream(stream or sys.stderr)
