"""Where a user's files lie that can be fetched again: downloaded data, models to begin from."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the user's cache: ``LEPTON_CACHE`` or ``~/.cache/lepton``."""
    return Path(os.environ.get("LEPTON_CACHE") or Path.home() / ".cache" / "lepton")
