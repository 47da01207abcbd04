"""Flower apps in an empty folder, run by the `lepton` command inside this process."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

_APPS = Path(__file__).parents[2] / "support" / "flower_apps"


class AppEnded(NamedTuple):
    """How an app's run ended: exit code, output, errors, where the app lies, its run folder."""

    code: int
    out: str
    err: str
    app: Path
    run: Path

    def found(self, name: str = "found.json"):
        """What the app itself wrote, in its own folder."""
        return json.loads((self.app / name).read_text())


@pytest.fixture
def copied(tmp_path) -> Callable[[str], Path]:
    """Returns a way to get a copy of an app's folder, away from ours."""

    def copy(name: str) -> Path:
        return shutil.copytree(
            _APPS / name,
            tmp_path / "their" / name,
            dirs_exist_ok=True,
            ignore=shutil.ignore_patterns("__pycache__"),
        )

    return copy


@pytest.fixture
def run_app(lepton, copied, tmp_path) -> Callable[..., AppEnded]:
    """Returns a way to run an app by its name."""

    def run(name: str, *words: str) -> AppEnded:
        app = copied(name)
        ended = lepton("simulate", f"app={app}", f"runs={tmp_path / 'runs'}", *words)
        runs = sorted((tmp_path / "runs").glob("*"))
        return AppEnded(*ended, app, runs[-1] if runs else tmp_path / "no-run")

    return run


@pytest.fixture(autouse=True)
def forgotten_modules():
    """Forgets the apps' modules, as a new process would not know them."""
    yield
    packages = {path.name for path in _APPS.glob("*/*") if path.is_dir()}
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]
