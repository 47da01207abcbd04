"""Installs the package of a task into a folder, as pip would, for the tests that need one."""

import shutil
import subprocess
import sys
from pathlib import Path

from lepton_common.extensions import extension, extensions

_SOURCE = Path(__file__).with_name("kidney_package")


def install(folder):
    """Returns the folder into which the task ``kidney`` was installed."""
    shutil.copytree(_SOURCE, folder / "source")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps",
         "--no-build-isolation", "--target", folder / "installed", folder / "source"],
        check=True,
    )  # fmt: skip
    return folder / "installed"


def forget():
    """Has this process look anew for what is installed."""
    extensions.cache_clear()
    extension.cache_clear()
