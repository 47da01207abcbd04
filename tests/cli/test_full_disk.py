"""A disk that becomes full at any write: a named error, nothing lost, and the run goes on."""

import os

import numpy as np
import pytest
from safetensors.numpy import load_file

import lepton_cli
from lepton_cli.run import list_runs
from lepton_cli.simulated_sites import SimulatedSites
from lepton_cli.simulation import resume
from lepton_common.errors import DiskFull

QUICK = ("task=breast_cancer", "sites=3", "rounds=2", "engine.workers=1", "seed=3")
PLAIN = (*QUICK, "privacy=none", "secagg=none")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class _Disk:
    """Syncs files, and finds itself full from some of them on.

    Attributes:
        syncs: how many there were.
    """

    def __init__(self, full_at=None):
        self.syncs, self._full_at, self._sync = 0, full_at, os.fsync

    def __call__(self, handle):
        self.syncs += 1
        if self._full_at is not None and self.syncs > self._full_at:
            raise OSError(28, "No space left on device")
        self._sync(handle)


def _weights(run):
    return np.concatenate([values.ravel() for values in load_file(run.folder.final_model).values()])


def _runs_full(words, at, monkeypatch):
    """Runs until the disk is full, and then goes on; returns the finished run."""
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _Disk(at))
        with pytest.raises(DiskFull, match="No room is left") as ended:
            lepton_cli.simulate(*words)
    run = list_runs()[-1]
    assert ended.value.exit_code == 5
    assert str(ended.value).endswith(f"lepton simulate resume={run.folder.path}")
    assert run.status == "interrupted"
    finished = resume(run)
    assert finished.report.exists()
    return finished


@pytest.mark.slow
def test_wherever_a_run_finds_no_room_it_goes_on_to_the_same_model(monkeypatch):
    disk = _Disk()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", disk)
        unbroken = lepton_cli.simulate(*PLAIN)
    for at in (disk.syncs // 2, disk.syncs - 1):
        run = _runs_full(PLAIN, at, monkeypatch)
        np.testing.assert_array_equal(_weights(run), _weights(unbroken))
        assert run.evidence.witnessed >= unbroken.evidence.witnessed


@pytest.mark.slow
@pytest.mark.parametrize("words", [(*QUICK, "secagg=none"), (*QUICK, "secagg.colluders=0"),
                                   (*QUICK, "secagg=none", "model=mlp", "engine=vectorized"),
                                   (*PLAIN, "engine=processes")])  # fmt: skip
def test_so_does_one_with_privacy_and_on_other_grounds(words, monkeypatch):
    words = (*words, "privacy.spare_rounds=9") if "privacy=none" not in words else words
    disk = _Disk()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", disk)
        lepton_cli.simulate(*words)
    founding = 8  # syncs of keys and configuration, before which there is no run to go on with
    for at in range(founding, disk.syncs, max(1, disk.syncs // 6)):
        run = _runs_full(words, at, monkeypatch)
        assert len(run.rounds) == 2
        assert all(len(site.events) >= 2 for site in run.evidence.sites.values() if site.epsilon)


def test_a_site_that_finds_no_room_to_be_made_ends_the_run(monkeypatch):
    with monkeypatch.context() as patched:

        def full(*_):
            raise OSError(28, "No space left on device")

        patched.setattr(SimulatedSites, "_write", full)
        with pytest.raises(DiskFull, match="resume="):
            lepton_cli.simulate(*PLAIN)
    assert resume(list_runs()[-1]).status == "finished"


def test_the_command_says_it_in_one_line_and_without_a_trace(lepton, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _Disk(12))
        ended = lepton("simulate", *PLAIN)
    assert ended.code == 5
    (line,) = [line for line in ended.err.splitlines() if "DiskFull" in line]
    assert "No room is left on the disk of " in line
    assert ": make room there. " in line
    assert "then go on with: lepton simulate resume=/" in line
    assert "Traceback" not in ended.err
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", _Disk(0))  # not even a folder for the run
        ended = lepton("simulate", *PLAIN)
    assert ended.code == 5
    assert "DiskFull: No room is left on the disk" in ended.err
