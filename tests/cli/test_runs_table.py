"""What a lead reads of runs at the coordinator: how they stand, why they failed, what stop does."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from lepton_common.control.control_pb2 import Run

FAILED = Run(name="run-1", status="failed", rounds=1, of_rounds=5, by="dora", metrics="{}",
             error="SitesRefused: All [3] sites \x1b[2Krefuse the run.")  # fmt: skip
RUNNING = Run(name="run-2", status="running", rounds=2, of_rounds=5, by="dora",
              metrics='{"accuracy": 0.75}')  # fmt: skip


@pytest.fixture
def service(monkeypatch):
    @contextmanager
    def control(folder, passphrase):
        runs = {run.name: run for run in (FAILED, RUNNING)}
        yield SimpleNamespace(
            List=lambda request: SimpleNamespace(runs=list(runs.values())),
            Stop=lambda request: runs[request.name],
        )

    monkeypatch.setattr("lepton_cli.control.control", control)


def test_a_failed_run_says_why_in_the_list(lepton, service):
    told = " ".join(lepton("run", "list", "--as", "dora").out.split())
    assert "run-1 │ failed │ 1/5 │ dora │ SitesRefused: All [3] sites [2Krefuse" in told
    assert "\x1b" not in told
    assert "run-2 │ running │ 2/5 │ dora │ accuracy 0.7500" in told


@pytest.mark.parametrize(
    ("run", "said"),
    [("run-1", "run-1 is failed already.\n"), ("run-2", "run-2 ends after its current round.\n")],
)
def test_stop_says_where_nothing_is_left_to_stop(lepton, service, run, said):
    ended = lepton("run", "stop", run, "--as", "dora")
    assert (ended.code, ended.out) == (0, said)
