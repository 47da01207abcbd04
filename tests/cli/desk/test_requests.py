"""What the operator is shown of a proposed run, and that their word counts."""

import json
from dataclasses import replace
from io import StringIO

import pytest
from desk_folder import Folder, folder, settings  # noqa: F401

from lepton_cli.statistics_run import statistics_overrides
from lepton_client.site import Site


def rows(lepton):
    return {
        row["run"]: row for row in json.loads(lepton("site", "requests", "site-1", "--json").out)
    }


def test_a_run_waits_is_approved_and_refused(lepton, folder):  # noqa: F811
    assert "No run" in lepton("site", "requests", "site-1").out
    folder.propose()
    assert rows(lepton)["run-1"]["state"] == "waits"
    for verb, state in (("approve", "approved"), ("refuse", "refused"), ("approve", "approved")):
        assert lepton("site", verb, "site-1", "run-1", "--yes").code == 0
        assert rows(lepton)["run-1"]["state"] == state
        assert Site(folder.path).proposals.verdict("run-1") == state


def test_without_a_yes_nothing_is_decided(lepton, folder, monkeypatch):  # noqa: F811
    folder.propose()
    monkeypatch.setattr("sys.stdin", StringIO("n\n\n"))
    for verb in ("approve", "refuse"):
        ended = lepton("site", verb, "site-1", "run-1")
        assert (ended.code, ended.err) == (130, "Stopped, as you asked.\n")
    assert rows(lepton)["run-1"]["state"] == "waits"


def test_where_the_policy_decides_nobody_is_asked(lepton, folder):  # noqa: F811
    folder.propose()
    folder.change(
        launch={"approval": "automatic", "people": None, "studies": None, "quiet_hours": []}
    )
    assert rows(lepton)["run-1"]["state"] == "automatic"


@pytest.mark.parametrize(
    ("words", "policy", "why"),
    [
        (["privacy=none", "secagg=sa1"], {}, "without differential privacy"),
        ([], {"min_cohort": 9}, "few sites"),
        ([], {"min_noise_multiplier": 50.0}, "noise multiplier"),
        ([], {"max_batch_size": 1}, "batch"),
        (["privacy=distributed", "secagg=sa1", "privacy.epsilon=0.9", "privacy.delta=1e-5",
          "privacy.sample_rate=1"],
         {"min_own_noise_multiplier": 50.0}, "own share of the noise"),
    ],
)  # fmt: skip
def test_what_the_policy_forbids_cannot_be_approved(lepton, folder, words, policy, why):  # noqa: F811
    folder.propose(made=settings(*words))
    folder.change(policy=policy)
    row = rows(lepton)["run-1"]
    assert row["state"] == "beyond the policy"
    assert (row["reasons"][0]["name"], why in row["reasons"][0]["said"]) == ("ConsentRefused", True)
    ended = lepton("site", "approve", "site-1", "run-1", "--yes")
    assert (ended.code, why in ended.err) == (4, True)
    assert Site(folder.path).proposals.verdict("run-1") is None


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "this site sums statistics of all people in toy"),
        (["statistics.evaluates=run-0"], "how well logistic of the run run-0 does on the people"),
    ],
)
def test_a_query_is_not_shown_as_training(lepton, folder, words, said):  # noqa: F811
    asked = statistics_overrides(["secagg=sa1", *words, "privacy.epsilon=0.5"])
    folder.propose(made=settings(*asked))
    shown = lepton("site", "requests", "site-1", "run-1").out
    assert said in shown
    assert "one sum, noised" in shown
    assert "trains logistic" not in shown


def test_trees_whose_noise_is_shared_are_for_the_operator_to_decide(lepton, folder):  # noqa: F811
    made = settings("privacy=distributed", "secagg=sa1", "privacy.epsilon=0.9",
                    "privacy.delta=1e-5", "privacy.sample_rate=1")  # fmt: skip
    folder.change(
        data={"id": "machines", "dataset": "ai4i", "root": None, "prepare": "public_ranges",
              "unit": "product", "rows": "rows.npy"}
    )  # fmt: skip
    folder.propose(made=replace(made, task="ai4i", model="boosted_trees.1x3b32"))
    row = rows(lepton)["run-1"]
    assert (row["state"], row["reasons"]) == ("waits", [])


def test_what_no_lead_has_signed_is_shown_as_such(lepton, folder):  # noqa: F811
    text = folder.propose()
    (folder.path / "proposals" / "run-1.json").write_text(text.replace("dora", "eve"))
    row = rows(lepton)["run-1"]
    assert (row["state"], row["reasons"][0]["name"]) == ("beyond the policy", "ProposalInvalid")


def test_one_run_is_shown_with_what_it_would_leave_of_the_budgets(lepton, folder):  # noqa: F811
    folder.propose()
    before = folder.bytes()
    found = json.loads(lepton("site", "requests", "site-1", "run-1", "--json").out)
    budgets = {budget["what"]: budget for budget in found["budgets"]}
    assert set(budgets) == {"in all", "in this run", "in 365 days"}
    for budget in budgets.values():
        assert budget["spent"] == 0
        assert budget["after"] == pytest.approx(0.9, abs=0.01)
    assert found["rounds_left"] >= 3
    assert folder.bytes() == before, "looking changes nothing"
    folder.change(policy={"max_epsilon_per_period": 0.5})
    found = json.loads(lepton("site", "requests", "site-1", "run-1", "--json").out)
    assert found["reasons"][0]["name"] == "BudgetSpent"
    assert "too much" in lepton("site", "requests", "site-1", "run-1").out


def test_a_run_that_was_not_proposed_is_not_found(lepton, folder):  # noqa: F811
    for verb in ("requests", "approve", "refuse", "rehearse"):
        assert lepton("site", verb, "site-1", "run-9").code == 5
