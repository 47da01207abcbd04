"""What went wrong, in full, in a file of the site's own that never leaves it."""

import contextlib
import time
import traceback
from pathlib import Path

from lepton_common.errors import LeptonError

ERROR_FILE = "errors.log"


def keep_trace(folder: Path, error: BaseException) -> None:
    """Adds an error to a folder's ``errors.log``.

    A refusal by name says all in its sentence; everything else has its trace beside it.
    """
    explained = error.__suppress_context__ or error.__context__ is None
    named = isinstance(error, LeptonError) and error.__cause__ is None and explained
    lines = traceback.format_exception_only if named else traceback.format_exception
    with contextlib.suppress(OSError), (folder / ERROR_FILE).open("a") as file:
        file.write(time.strftime("%Y-%m-%dT%H:%M:%S%z\n"))
        file.writelines(lines(error))
