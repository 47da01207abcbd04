"""Tests of `lepton privacy audit`: what it prints and refuses, and how it ends."""

import json

import pytest
import yaml

import lepton_cli
from lepton_cli.privacy_audit.audit import Audit
from lepton_cli.privacy_audit.claim import Wanted, claim_of_options, claim_of_run
from lepton_cli.run import find_run
from lepton_common.asking import privacy_request
from lepton_common.errors import AuditError, AuditFailed, LeptonError, SettingsError
from lepton_common.privacy.accounting import GaussianEvent
from lepton_common.privacy.plan import calibrated_noise

_SMALL = ("--rounds", "12", "--canaries", "1000", "--device", "cpu")


@pytest.fixture
def run_folder(tmp_path, setting_values):
    """Returns a maker of run folders that hold a configuration and nothing else."""

    def make(changes=None, *, private=True):
        folder = tmp_path / "runs" / "some-run"
        folder.mkdir(parents=True)
        values = setting_values(changes, private=private)
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return folder

    return make


@pytest.fixture
def finished(tmp_path, monkeypatch):
    """Returns a maker of finished runs."""
    monkeypatch.chdir(tmp_path)

    def make(*changes):
        return lepton_cli.simulate("task=breast_cancer", *changes)

    return make


@pytest.mark.slow
def test_an_honest_installation_is_consistent_with_its_claim(lepton, finished):
    run = finished("sites=2", "secagg=none", "rounds=11", "privacy.sample_rate=0.5")
    ended = lepton("privacy", "audit", str(run.folder.path), "--canaries", "1000", "--json")
    assert ended.code == 0, ended.out + ended.err
    found = json.loads(ended.out)
    assert set(found) == {
        "claim", "conformance", "one_run", "membership", "inversion", "passed", "faults",
    }  # fmt: skip
    assert found["passed"] is True
    assert found["faults"] == []
    claim = found["claim"]
    assert claim["source"] == f"the run {run.name}"
    assert (claim["steps"], claim["of_steps"], claim["sample_rate"]) == (12, 12, 0.5)
    assert claim["noise_multiplier"] == calibrated_noise(
        target_epsilon=3.0, delta=1e-5, sample_rate=0.5, max_steps=12
    )
    assert found["one_run"]["certified_epsilon"] < claim["epsilon"] <= 3.0
    assert found["one_run"]["runs"] == 1
    assert set(found["one_run"]["gaussian_estimate"]) == {
        "mu", "interval", "plan_mu", "epsilon", "epsilon_interval", "plan_epsilon",
    }  # fmt: skip
    assert len(found["conformance"]) == 32
    for check in found["conformance"]:
        assert set(check) == {"name", "passed", "measured", "expected"}
        assert check["passed"] is True
    assert found["membership"]["exposed"]["auc"] > 0.8
    assert found["inversion"]["without_noise"]["cosine"] > 0.999


@pytest.mark.slow
def test_a_broken_installation_ends_with_its_code_and_one_document(lepton, break_it):
    break_it("no noise")
    ended = lepton("privacy", "audit", "--epsilon", "3", *_SMALL, "--json")
    assert ended.code == AuditFailed.exit_code == 4
    found = json.loads(ended.out)
    assert found["passed"] is False
    assert found["one_run"]["certified_epsilon"] > 3.0
    assert found["one_run"]["runs"] == 4
    assert found["one_run"]["gaussian_estimate"]["epsilon"] is None  # without bound
    assert any("certified lower bound" in fault for fault in found["faults"])
    assert any("noise: standard deviation" in fault for fault in found["faults"])


@pytest.mark.slow
def test_a_broken_installation_is_told_in_tables_and_one_sentence(lepton, break_it):
    break_it("clipping off")
    ended = lepton("privacy", "audit", "--epsilon", "1", *_SMALL)
    assert ended.code == 4
    assert "FAILED" in ended.out
    assert "does not keep the claim" in ended.out
    assert "AuditFailed:" in ended.err
    assert "exceeds the claimed epsilon" in ended.err
    for word in ("Gaussian estimate, not certified", "certified lower bound, 95% confidence",
                 "the smallest bound of 4", "membership by loss", "PSNR", "on cpu"):  # fmt: skip
        assert word in ended.out


def test_a_bound_above_the_claim_is_tried_again(monkeypatch, make_plan):
    """One certified bound in twenty may be wrong, which alone is no fault."""
    from lepton_cli.privacy_audit import audit
    from lepton_cli.privacy_audit.claim import Claim

    class Run:
        def __init__(self, bound):
            self.certified_epsilon = bound

    claim = Claim("test", make_plan(), 12, 12, "cpu")
    for bounds, least, runs in (
        ([4.0, 2.0], 2.0, 2),
        ([2.5], 2.5, 1),
        ([5.0, 4.0, 4.5, 4.2], 4.0, 4),
    ):
        left = list(bounds)
        monkeypatch.setattr(audit, "audit_one_run", lambda *_, left=left: Run(left.pop(0)))
        found = audit._smallest_bound(claim, 3.0, 1000, None, lambda name, parts: lambda: None)
        assert (found[0].certified_epsilon, found[1], left) == (least, runs, [])


def test_the_plan_of_options_is_that_of_lepton_privacy_plan():
    wanted = Wanted(
        epsilon=2.0, noise_multiplier=None, delta=1e-6, rounds=10, local_steps=3,
        sample_rate=0.1, clipping_norm=0.5, canaries=1000,
    )  # fmt: skip
    claim = claim_of_options(wanted)
    assert claim.plan.noise_multiplier == calibrated_noise(
        target_epsilon=2.0, delta=1e-6, sample_rate=0.1, max_steps=30
    )
    assert (claim.steps, claim.of_steps, claim.plan.steps_per_round) == (30, 30, 3)
    assert claim.epsilon == claim.plan.epsilon(10)
    assert 1.9 < claim.epsilon <= 2.0


def test_of_a_long_plan_the_first_steps_are_audited_and_claimed():
    wanted = Wanted(
        epsilon=None, noise_multiplier=50.0, delta=1e-5, rounds=1000, local_steps=7,
        sample_rate=1.0, clipping_norm=1.0, canaries=1000,
    )  # fmt: skip
    claim = claim_of_options(wanted)
    assert (claim.steps, claim.of_steps) == (1995, 7000)
    assert claim.epsilon == claim.plan.epsilon(285)


def test_the_plan_of_a_run_with_shared_noise(finished):
    run = finished("privacy=distributed", "model=logistic", "sites=4", "rounds=2")
    claim = claim_of_run(run)
    assert claim.plan.shared is not None
    assert (claim.plan.shared.sites, claim.plan.shared.dimension) == (4, 62)
    asked = privacy_request(run.settings, 62)
    assert claim.plan.noise_multiplier == asked.noise_multiplier
    assert claim.epsilon <= 3.0


def test_another_plan_than_the_sites_charged_for_is_no_claim(finished):
    run = finished("sites=2", "secagg=none", "rounds=2")
    text = run.folder.config.read_text()
    run.folder.config.write_text(text.replace("epsilon: 3.0", "epsilon: 300.0"))
    with pytest.raises(AuditError, match="not the configuration"):
        claim_of_run(find_run(str(run.folder.path)))
    run.folder.config.write_text(text)
    again = find_run(str(run.folder.path))
    loud = GaussianEvent(1.0, 0.5, 1)
    again.evidence.totals.events.add(loud)
    with pytest.raises(AuditError, match="another mechanism"):
        claim_of_run(again)


def test_a_damaged_model_is_named(finished):
    run = finished("privacy=distributed", "sites=4", "rounds=1")
    run.folder.final_model.write_bytes(b"no model")
    with pytest.raises(AuditError, match="is no model"):
        claim_of_run(run)


@pytest.mark.parametrize(
    ("changes", "private", "fault"),
    [
        ({}, False, "privacy=none"),
        ({"privacy.mode": "distributed", "secagg.mode": "sa1",
          "federation.weights": "public_size"}, True, "has no model yet"),
    ],
)  # fmt: skip
def test_a_run_without_such_a_plan_is_refused(run_folder, changes, private, fault):
    run = find_run(str(run_folder(changes, private=private)))
    with pytest.raises(SettingsError, match=fault):
        claim_of_run(run)


@pytest.mark.parametrize(
    ("words", "code", "fault"),
    [
        (("--epsilon", "nan"), 2, "epsilon=nan"),
        (("--epsilon", "3", "--noise-multiplier", "2"), 2, "either --epsilon or"),
        (("--canaries", "999"), 2, "canaries=999"),
        (("--delta", "2", "--rounds", "0"), 2, "rounds=0"),
        (("last", "--epsilon", "3"), 2, "drop --epsilon"),
        (("nowhere",), 5, "No run 'nowhere'"),
        (("--device", "abacus"), 2, "abacus"),
        (("--epsilon", "0.001"), 4, "No noise reaches"),
    ],
)
def test_what_cannot_be_audited_is_refused(lepton, words, code, fault):
    ended = lepton("privacy", "audit", *words)
    assert ended.code == code
    assert fault in ended.err


def test_help_teaches(lepton):
    shown = lepton("privacy", "audit", "--help").out
    for words in ("lepton privacy audit last", "made-up", "certified", "Exit code 4", "--canaries"):
        assert words in shown


def test_a_failed_audit_is_an_error_of_privacy():
    assert issubclass(AuditFailed, LeptonError)
    assert AuditFailed.exit_code == 4
    assert "faults" in dir(Audit)
