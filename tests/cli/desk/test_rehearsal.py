"""A rehearsal goes through a whole round, and leaves no trace."""

import json

import pytest
from desk_folder import Folder, folder, settings  # noqa: F401

from lepton_client.site import AUDIT_FILE, Site
from lepton_common.audit import read_records

OPEN = {"allow_without_dp": True, "allow_without_secagg": True, "min_cohort": 1}
SHARED = ["secagg=sa1", "privacy.epsilon=0.9", "privacy.delta=1e-5", "privacy.sample_rate=1"]


def rehearse(lepton, what="run-1"):
    ended = lepton("site", "rehearse", "site-1", what, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.mark.parametrize(
    ("words", "protection"),
    [
        ((), "masked and noised, protocol"),
        (["privacy=distributed", *SHARED], "masked and noised, protocol"),
        (["privacy=none", "secagg=none"], "nothing, protocol"),
        (["privacy=record", *SHARED[1:], "secagg=none"], "noised, protocol"),
        (["privacy=none", "secagg=sa1", "secagg.groups=2", "sites=6", "secagg.colluders=0",
          "strategy=fedmedian"], "masked, protocol"),
    ],
)  # fmt: skip
def test_each_mode_is_gone_through_and_leaves_no_trace(lepton, folder, words, protection):  # noqa: F811
    folder.change(policy={**OPEN, "colluders": 0, "max_epsilon": 100.0})
    folder.propose(made=settings(*words))
    before = folder.bytes()
    found = rehearse(lepton)
    assert folder.bytes() == before
    assert found["would_leave"][0]["what"] == "public facts"
    assert protection in [item["protection"] for item in found["would_leave"]]
    private = "noised" in protection
    assert found["rounds_charged"] == (1 if private else 0)
    assert (found["epsilon"] or 0) <= 0.9
    assert (found["epsilon"] is not None) == private
    assert found["not_leaving"]["finite"]
    assert found["not_leaving"]["norm"] > 0
    assert found["summed"]


def test_quiet_hours_and_approval_do_not_stop_it(lepton, folder):  # noqa: F811
    folder.propose()
    folder.change(
        launch={"approval": "manual", "people": None, "studies": None,
                "quiet_hours": ["00:00-12:00", "12:00-00:00"]}
    )  # fmt: skip
    lepton("site", "refuse", "site-1", "run-1", "--yes")
    assert rehearse(lepton)["summed"]


def test_a_file_is_rehearsed_before_anybody_proposed_it(lepton, folder, tmp_path):  # noqa: F811
    text = folder.propose()
    (folder.path / "proposals" / "run-1.json").rename(tmp_path / "proposal.json")
    assert text == (tmp_path / "proposal.json").read_text()
    found = rehearse(lepton, "proposal.json")
    assert found["run"] == "rehearsal"
    said = lepton("site", "rehearse", "site-1", "proposal.json").out
    assert "Nothing was sent, charged or logged" in said
    assert "3 other sites" in said


def test_what_would_stop_the_run_is_said_in_the_sites_own_words(lepton, folder):  # noqa: F811
    folder.propose()
    folder.change(policy={"max_epsilon_per_period": 0.1})
    ended = lepton("site", "rehearse", "site-1", "run-1")
    assert ended.code == 4
    assert "BudgetSpent" in ended.err
    assert "at most 0.1 in 365 days" in ended.err


def test_a_fault_of_the_data_is_named(lepton, folder):  # noqa: F811
    folder.propose()
    (folder.path / "rows.npy").write_bytes(b"no rows")
    ended = lepton("site", "rehearse", "site-1", "run-1")
    assert (ended.code, "rows" in ended.err) == (3, True)


def test_a_run_that_has_begun_is_not_rehearsed(lepton, folder):  # noqa: F811
    folder.propose()
    body = {"run": "run-1", "round": 1, "reply_to": "m", "charge": None, "items": []}
    Site(folder.path).audit.append("release", body)
    ended = lepton("site", "rehearse", "site-1", "run-1")
    assert (ended.code, "RehearsalFailed" in ended.err) == (5, True)
    assert len(list(read_records(folder.path / AUDIT_FILE))) == 3
