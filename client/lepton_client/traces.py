"""What went wrong, in full, in a file of the site's own that never leaves it."""

import contextlib
import time
import traceback
from pathlib import Path

from lepton_common.errors import LeptonError
from lepton_common.printable import printable

ERROR_FILE = "errors.log"


def keep_trace(folder: Path, error: BaseException) -> None:
    """Adds an error to a folder's ``errors.log``.

    A refusal by name is its sentence and its place; everything else has its trace.
    """
    explained = error.__suppress_context__ or error.__context__ is None
    if isinstance(error, LeptonError) and error.__cause__ is None and explained:
        # Its sentence may quote a stranger, who must not write further lines.
        lines = [printable(line) + "\n" for line in traceback.format_exception_only(error)]
        place = traceback.extract_tb(error.__traceback__)[-1:]
        lines += [f"  at {Path(frame.filename).name}:{frame.lineno}\n" for frame in place]
    else:
        lines = traceback.format_exception(error)
    path = folder / ERROR_FILE
    with (
        contextlib.suppress(OSError),
        path.open("a", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
        file.writelines(lines)
