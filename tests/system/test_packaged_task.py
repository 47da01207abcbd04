"""A task of a package that everyone has installed, at real sites."""

import json

import packaged_task
import pytest
from federation import running

from lepton_client.site import Site
from lepton_common.extensions import extensions

pytestmark = pytest.mark.system


def test_a_task_of_another_package_runs_at_real_sites(tmp_path, monkeypatch):
    installed = str(packaged_task.install(tmp_path))
    monkeypatch.syspath_prepend(installed)
    monkeypatch.setenv("PYTHONPATH", installed)
    packaged_task.forget()
    try:
        assert "kidney" in extensions("lepton.tasks")
        path = tmp_path / "federation"
        path.mkdir()
        with running(path, sites=3, task="kidney") as federation:
            name = federation.submit("task=kidney sites=3 privacy=record privacy.epsilon=0.9")
            last = json.loads(federation.watch(name).stdout.splitlines()[-1])
            assert (last["status"], last["rounds"]) == ("finished", 6)
            assert last["metrics"]["accuracy"] > 0.6
            for site in federation.sites:
                assert 0 < Site(federation.path / site).ledger.epsilon(1e-5) <= 0.9
    finally:
        packaged_task.forget()
