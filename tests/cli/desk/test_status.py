"""What stands in a site's log and ledger, told to its operator, and whether its agent works."""

import json
from dataclasses import replace

import pytest
from desk_folder import STRICT, Folder, folder  # noqa: F401
from toy_site import PRIVACY, request

from lepton_client.running import agent_of, only_agent
from lepton_client.site import Site
from lepton_common.errors import AgentRunning
from lepton_common.privacy.provenance import protected_by_dp

# All records in each step, and much noise: quick to account for, and within the budgets.
PLAN = replace(PRIVACY, sample_rate=1.0, noise_multiplier=8.0).plan("row", 16)
GENEROUS = replace(STRICT, max_epsilon=100.0, max_epsilon_per_run=None, max_epsilon_per_period=None)


def spend(folder, rounds=1):  # noqa: F811
    """Charges rounds to a run, and has the log tell of them."""
    site = Site(folder.path)
    site.ledger.use_data("row", frozenset({bytes(16)}))
    for round_ in range(1, rounds + 1):
        charge = site.ledger.reserve(PLAN, request(round=round_), GENEROUS)
        site.ledger.redeem(charge)
        event = protected_by_dp(charge.event).record()
        item = {"name": "update", "bytes": 252, "sha256": "0" * 64, "provenance": event}
        body = {"run": "run-1", "round": round_, "reply_to": "m", "charge": charge.id}
        site.audit.append("release", {**body, "items": [item]})
    return site


def test_an_agent_is_seen_while_it_works_and_keeps_others_out(tmp_path):
    assert agent_of(tmp_path) is None
    with only_agent(tmp_path):
        assert agent_of(tmp_path) is not None
        with pytest.raises(AgentRunning), only_agent(tmp_path):
            pass
        assert agent_of(tmp_path) is not None
    assert agent_of(tmp_path) is None


def test_status_tells_budgets_and_what_waits(lepton, folder):  # noqa: F811
    spend(folder)
    folder.propose("run-2")
    before = folder.bytes()
    told = json.loads(lepton("site", "status", "site-1", "--json").out)
    assert folder.bytes() == before
    assert (told["name"], told["federation"], told["agent"]) == ("site-1", "hospitals", None)
    assert told["waiting"] == ["run-2"]
    left = {budget["what"]: budget["left"] for budget in told["budgets"]}
    assert left["in all"] == pytest.approx(3.0 - PLAN.epsilon(1), abs=0.01)
    assert told["last"][-1]["bytes"] == 252
    with only_agent(folder.path):
        assert "running, process" in lepton("site", "status", "site-1").out


def test_status_says_when_nothing_is_trained_now(lepton, folder):  # noqa: F811
    told = lambda: json.loads(lepton("site", "status", "site-1", "--json").out)["quiet"]  # noqa: E731
    assert told() is None
    launch = {"approval": "manual", "people": None, "studies": None,
              "quiet_hours": ["00:00-12:00", "12:00-00:00"]}  # fmt: skip
    folder.change(launch=launch)
    assert told() in launch["quiet_hours"]
    assert "trains nothing from" in lepton("site", "status", "site-1").out


def test_the_log_tells_runs_rounds_bytes_and_protection(lepton, folder):  # noqa: F811
    site = spend(folder, rounds=2)
    site.audit.append("refusal", {"reply_to": "m", "error": "ApprovalPending"})
    site.audit.append("refusal", {"reply_to": "n", "error": "ApprovalPending"})
    spec = {"spec": "a", "stage": "SIGNED", "reply_to": "m", "charge": None}
    head = {"name": "secagg", "bytes": 66, "sha256": "0" * 64, "provenance": "protocol"}
    bare = {"name": "update", "bytes": 9, "sha256": "0" * 64, "provenance": "unprotected"}
    site.audit.append("release", {**spec, "run": "run-2", "round": 5, "items": [head]})
    site.audit.append("release", {**spec, "items": [bare]})
    told = json.loads(lepton("site", "log", "site-1", "--json").out)
    assert [(t["run"], t["round"], t["bytes"], t["protection"]) for t in told[1:3]] == [
        ("run-1", 1, 252, "noised"), ("run-1", 2, 252, "noised"),
    ]  # fmt: skip
    assert told[3]["what"] == "refused: ApprovalPending, 2 times"
    of_run = json.loads(lepton("site", "log", "site-1", "--run", "run-2", "--json").out)
    assert [(t["round"], t["protection"]) for t in of_run] == [(5, "protocol"), (5, "nothing")]
    assert "315 bytes left in all" not in lepton("site", "log", "site-1", "-n", "1").out
    assert "579 bytes left in all" in lepton("site", "log", "site-1", "-n", "1").out


def test_one_altered_record_and_nothing_is_shown(lepton, folder):  # noqa: F811
    spend(folder)
    path = folder.path / "audit.jsonl"
    path.write_text(path.read_text().replace('"bytes":252', '"bytes":251'))
    for verb in ("log", "status", "ledger"):
        ended = lepton("site", verb, "site-1")
        assert (ended.code, ended.out) == (6, "")


def test_the_ledger_is_told_by_run_and_budget(lepton, folder):  # noqa: F811
    spend(folder, rounds=2)
    told = json.loads(lepton("site", "ledger", "site-1", "--json").out)
    (run,) = told["runs"]
    assert (run["run"], run["charges"], run["released"], run["steps"]) == ("run-1", 2, 2, 4)
    assert run["epsilon"] == pytest.approx(PLAN.epsilon(2), rel=1e-3)
    spent = {budget["what"]: budget["spent"] for budget in told["budgets"]}
    assert spent["in all"] == pytest.approx(PLAN.epsilon(2), rel=1e-3)
    assert "run-1" in lepton("site", "ledger", "site-1").out


def test_a_ledger_that_lacks_what_the_log_tells_is_no_ledger(lepton, folder):  # noqa: F811
    spend(folder)
    (folder.path / "ledger.db").unlink()
    assert lepton("site", "ledger", "site-1").code == 4
