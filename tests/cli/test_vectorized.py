"""Sites trained together: the same model up to rounding, the same rules, and the same proofs."""

import json
import logging

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from safetensors.numpy import load_file

import lepton_cli
from lepton_cli.compose import compose_settings
from lepton_cli.evidence import gather_evidence
from lepton_cli.run import list_runs
from lepton_cli.simulation import resume, start
from lepton_client.hosted import host
from lepton_client.hosted.host import Host
from lepton_client.hosted.ledger import HostLedger
from lepton_client.ledger import Charge
from lepton_common.audit import AuditLog
from lepton_common.content import read_text
from lepton_common.errors import AuditError, DoorRefused, Interrupted, QuorumNotMet, SitesRefused
from lepton_common.flower.task_identity import speak_for
from lepton_common.hosting import TRAIN_MANY, ManyReceipts
from lepton_common.messages import Receipt
from lepton_common.privacy.events import read_event
from lepton_common.privacy.plan import PrivacyPlan
from lepton_common.privacy.provenance import protected_by_dp
from lepton_server.progress import Observer
from lepton_server.rounds import hosted
from lepton_server.rounds.checkpoint import Checkpoint
from lepton_server.rounds.request import train_request

QUICK = ("task=breast_cancer", "model=mlp", "sites=7", "rounds=3", "secagg=none")
PLAIN = (*QUICK, "privacy=none")
RECORD = (*QUICK, "privacy=record", "privacy.epsilon=3")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def weights(run):
    return np.concatenate([values.ravel() for values in load_file(run.folder.final_model).values()])


def together(*words, **more):
    return lepton_cli.simulate(*words, "engine=vectorized", **more)


@pytest.mark.parametrize("more", [(), ("federation.cohort=4", "strategy=fedadam"),
                                  ("data.partition=dirichlet", "strategy=fedprox"),
                                  ("strategy=fedmedian",)])  # fmt: skip
def test_the_model_is_that_of_sites_one_at_a_time_up_to_rounding(more):
    one, other = lepton_cli.simulate(*PLAIN, *more), together(*PLAIN, *more)
    assert other.folder.host.exists()
    assert not (other.folder.path / "sites").exists()
    np.testing.assert_allclose(weights(other), weights(one), atol=2e-5)
    assert set(other.evidence.sites) == set(one.evidence.sites)
    for name, site in other.evidence.sites.items():
        assert site.releases == one.evidence.sites[name].releases - 1  # without the introduction
        assert site.bytes_left["unprotected"] == one.evidence.sites[name].bytes_left["unprotected"]


@pytest.mark.slow
def test_private_sites_spend_what_they_would_alone():
    one, other = lepton_cli.simulate(*RECORD), together(*RECORD)
    for name, site in other.evidence.sites.items():
        alone = one.evidence.sites[name]
        assert (site.events, site.delta) == (alone.events, alone.delta)
        assert site.epsilon == alone.epsilon > 1.0
        assert site.bytes_left["dp"] == alone.bytes_left["dp"]
        assert not site.without_dp
    assert [r.epsilon for r in other.rounds] == [r.epsilon for r in one.rounds]
    assert all(site.engines == {"together": None} for site in other.evidence.sites.values())
    statement = (other.folder.path / "model_card.md").read_text()
    assert "differential privacy at each site" in statement
    assert "Sites were trained together" in statement


@pytest.mark.slow
def test_how_many_are_trained_at_once_changes_rounding_only():
    runs = [together(*PLAIN, f"engine.together={size}", "engine.workers=2") for size in (1, 3, 7)]
    for run in runs[1:]:
        np.testing.assert_allclose(weights(run), weights(runs[0]), atol=2e-5)


def test_it_says_why_where_sites_go_one_at_a_time(caplog):
    with caplog.at_level(logging.WARNING, "lepton.simulation"):
        run = together("task=breast_cancer", "sites=4", "rounds=1", "privacy=none")
    assert "one at a time" in caplog.text
    assert "Under secure aggregation each site masks its own update." in caplog.text
    assert run.settings.engine.vectorize == "none"
    assert len(list((run.folder.path / "sites").iterdir())) == 4


@pytest.mark.slow
def test_a_policy_is_each_sites_own_word(tmp_path):
    with pytest.raises(SitesRefused, match="outside what the sites allow"):
        together(*PLAIN, "policy.allow_without_dp=false")
    with pytest.raises(SitesRefused):
        together(*RECORD, "policy.max_clipping_norm=0.01")
    (run,) = (tmp_path / "runs").glob("*record")
    assert "A clipping norm of" in (run / "host" / "errors.log").read_text()


def test_a_spent_budget_ends_the_run_and_nothing_leaves_that_was_not_charged():
    with pytest.raises(SitesRefused):
        together(*RECORD, "policy.max_epsilon=2.0")
    sites = gather_evidence(list_runs()[-1].folder).sites.values()
    assert sites
    assert all(0 < site.epsilon <= 2.0 for site in sites)
    assert all(site.releases == len(site.events) < 3 for site in sites)


class _StopsAfter(Observer):
    def __init__(self, rounds):
        super().__init__()
        self.rounds = rounds

    def on_round(self, report):
        self.stop_requested = report.round == self.rounds


@pytest.mark.slow
@pytest.mark.parametrize("words", [PLAIN, RECORD])
def test_a_stopped_run_goes_on_with_its_ledger(words):
    settings = compose_settings([*words, "engine=vectorized"])
    with pytest.raises(Interrupted):
        start(settings, _StopsAfter(2))
    run = resume(list_runs()[-1])
    assert run.status == "finished"
    if words is PLAIN:
        np.testing.assert_allclose(weights(run), weights(together(*words)), atol=2e-5)
    else:
        assert all(len(site.events) == 3 for site in run.evidence.sites.values())


def test_a_log_without_the_newest_of_a_rounds_answers_is_refused(monkeypatch):
    collect = hosted.collect

    def newest_first(grid, contents, message_type, timeout_s):
        answers = list(collect(grid, contents, message_type, timeout_s))
        if message_type == TRAIN_MANY and not any(isinstance(one, str) for _, one in answers):
            log = (list_runs()[-1].folder.host / "audit.jsonl").read_bytes()
            said = [read_text(ManyReceipts, answer, "receipts") for _, answer in answers]
            heads = [receipts.receipts[0].audit_head for receipts in said]
            heads = [log.index(f'"hash":"{head}"'.encode()) for head in heads]
            assert len(set(heads)) == 2
            answers = [answers[heads.index(at)] for at in sorted(heads, reverse=True)]
        yield from answers

    monkeypatch.setattr(hosted, "collect", newest_first)
    with pytest.raises(Interrupted):
        start(compose_settings([*RECORD, "engine=vectorized", "engine.workers=2"]), _StopsAfter(1))
    run = list_runs()[-1]
    path = run.folder.host / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    (_, last) = [n for n, line in enumerate(lines) if json.loads(line)["kind"] == "releases"]
    path.write_bytes(b"".join(lines[:last]))
    monkeypatch.setattr(host, "_OPENED", {})  # as a new process knows none
    with pytest.raises(QuorumNotMet, match="LedgerRolledBack"):
        resume(run)


def test_charges_of_before_a_crash_count_and_cover_no_release():
    run = together(*RECORD)
    host = Host(run.folder.host)
    (charge, *_) = [record for record in host.audit.records if record.kind == "charge"]
    name = charge.body["sites"][0]
    assert host.ledger.rounds(name) == 3
    again = Charge(charge.hash, "r", "p", "row", "", False, 0.0, read_event(charge.body["event"]))
    with pytest.raises(DoorRefused):
        host.ledger.redeem(again, [name])


def _altered_leaf(run):
    path = run.folder.host / "releases.leaves"
    data = bytearray(path.read_bytes())
    data[data.index(b'"', 14) + 3] ^= 1
    path.write_bytes(bytes(data))


def _cut_leaves(run):
    path = run.folder.host / "releases.leaves"
    path.write_bytes(path.read_bytes()[:-40])


def _cut_log(run):
    path = run.folder.host / "audit.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))


def _altered_log(run):
    path = run.folder.host / "audit.jsonl"
    path.write_text(path.read_text().replace('"site-2"', '"site-3"', 1))


@pytest.mark.parametrize("alter", [_altered_leaf, _cut_leaves, _cut_log, _altered_log])
def test_whatever_is_altered_is_found(alter):
    run = together(*RECORD)
    gather_evidence(run.folder)
    alter(run)
    with pytest.raises(AuditError):
        gather_evidence(run.folder)


def test_sites_of_their_own_beside_a_host_are_found():
    run = together(*PLAIN)
    (run.folder.path / "sites" / "site-1").mkdir(parents=True)
    with pytest.raises(AuditError, match="no folders of their own"):
        gather_evidence(run.folder)


@pytest.mark.slow
def test_where_training_diverges_the_run_ends_by_name():
    with pytest.raises(QuorumNotMet):
        together(*PLAIN, "train.learning_rate=1e30", "train.local_epochs=3")


def test_a_million_sites_that_are_trained_together(tmp_path):
    run = together("task=digits", "model=mlp", "privacy=none", "secagg=none", "sites=1000000",
                   "federation.cohort=40", "data.partition=drawn", "data.records_per_site=10",
                   "rounds=2")  # fmt: skip
    assert len(run.evidence.sites) == 80
    assert run.evidence.totals.sites == 80
    log = (run.folder.host / "audit.jsonl").read_text().splitlines()
    assert len([line for line in log if json.loads(line)["kind"] == "releases"]) >= 2
    assert sum(path.stat().st_size for path in run.folder.path.rglob("*")) < 2_000_000


def test_the_door_lets_out_one_update_of_each_site_that_was_charged():
    run = together(*RECORD, "rounds=1", "privacy.spare_rounds=5")
    host = Host(run.folder.host)
    (line,) = [record for record in host.audit.records if record.kind == "releases"][:1]
    assert set(line.body["receipts"]) == {"bytes", "sha256", "provenance"}
    names = [host.member(place).name for place in range(3)]
    plan = PrivacyPlan("row", 1e-5, 1.0, 50.0, 1.0, 1, 9, 8.0)
    speak_for(1, 1)
    message = Message(RecordDict(), dst_node_id=2, message_type="train.many")
    receipt = Receipt(run="r", round=1, plan=None, steps=0, epsilon=0.0, audit_head="0" * 64,
                      ledger_head="0" * 64)  # fmt: skip

    def release(said, rows, charge):
        receipts = ManyReceipts(names=said, receipts=[receipt], of=[0] * len(said), failed={})
        updates = np.zeros((rows, 4), np.float32)
        return host.door.release_many(message, updates, None, receipts,
                                      protected_by_dp(plan.event()), {"run": "r", "round": 1},
                                      charge, host.leaves, host.ledger)  # fmt: skip

    host.ledger = HostLedger(AuditLog(host.folder / "other.jsonl", host.key, "host"),
                             host.file.policy)  # fmt: skip
    asked = read_train_request(run)
    for said, rows in ((names[:2], 3), ([names[0]] * 2, 2), (names[:1], 0)):
        charge, _ = host.ledger.reserve(names, dict.fromkeys(names, plan), asked)
        with pytest.raises(DoorRefused, match="one update, under its own name"):
            release(said, rows, charge)
    charge, _ = host.ledger.reserve(names[:1], dict.fromkeys(names, plan), asked)
    before = len(host.audit.records)
    with pytest.raises(DoorRefused, match="under a charge to that site"):
        release(names[:2], 2, charge)
    assert len(host.audit.records) == before
    charge, _ = host.ledger.reserve(names, dict.fromkeys(names, plan), asked)
    assert not release(names, 3, charge).has_error()


def read_train_request(run):
    settings = run.settings
    state = Checkpoint(round=0, model=np.zeros(4, np.float32))
    return train_request(settings, "r", "0" * 64, state, None, {"a": 1}, {})
