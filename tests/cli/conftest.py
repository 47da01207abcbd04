"""Runs the `lepton` command inside this process, and small simulations."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from matplotlib.figure import Figure

from lepton_cli.run import Run, find_run
from lepton_client.site import forget_sites
from lepton_common.datasets.catalog import load_dataset


class Ended(NamedTuple):
    """How a command ended: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def lepton(monkeypatch, capsys, tmp_path) -> Callable[..., Ended]:
    """Returns a caller of the command line, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str) -> Ended:
        from lepton_cli.main import main

        monkeypatch.setattr(sys, "argv", ["lepton", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def _kept_runs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture
def finished(lepton, _kept_runs) -> Callable[..., Run]:
    """Returns what gives a copy of a finished run, to be spoiled; each is simulated once only."""

    def copy(*words: str) -> Run:
        kept = _kept_runs / " ".join(words)
        if not kept.exists():
            assert lepton("simulate", *words).code == 0
            shutil.copytree("runs", kept, symlinks=True)
        else:
            shutil.copytree(kept, "runs", symlinks=True)
        return find_run("last")

    return copy


@pytest.fixture(scope="session")
def _drawn() -> dict[str, bytes]:
    """Returns the pictures that were drawn already, by the names of their files."""
    return {}


@pytest.fixture(scope="module", autouse=True)
def rough_pictures(_drawn):
    """Draws one of each kind, small and without a layout, and gives it to whoever wants another.

    A report's pictures take longer than a small run. The tests of pictures have them as users do.
    """
    savefig = Figure.savefig

    def rough(figure, target, **given):
        kept = _drawn.get(target.name) if isinstance(target, Path) else None
        if kept is not None:
            target.write_bytes(kept)
            return
        figure.set_layout_engine("none")
        savefig(figure, target, **{**given, "dpi": 20})
        if isinstance(target, Path):
            _drawn[target.name] = target.read_bytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", rough)
        yield


@pytest.fixture(autouse=True)
def fresh_caches():
    """Forgets opened sites and loaded data, as a new process would."""
    yield
    forget_sites()
    load_dataset.cache_clear()
