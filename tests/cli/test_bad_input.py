"""Bad input: one sentence that says what is wrong and what to do, and the right exit code."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lepton_cli.run import find_run
from lepton_common.datasets.catalog import DATASETS

QUICK = ("task=breast_cancer", "sites=3", "rounds=2", "privacy=none", "secagg=none")
PRIVATE = QUICK[:3]
SECURE = (*QUICK[:-1], "secagg=sa1")
HEART = Path(__file__).parents[2].parent / "shared" / "data" / "heart-disease"


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["task=digts"], 2, "Unknown task 'digts'; did you mean 'digits'?"),
        (["privacy.epsilon=-1"], 2, "privacy.epsilon=-1: should be greater than 0."),
        (["privacy.delta=null"], 2, "An epsilon without a delta means nothing: set privacy.delta"),
        (["sites=4000"], 3, "4000 sites of at least 1 records need more than the 1437 training"),
        (["task=heart_disease", "data.root=nowhere"], 3, "Expected processed.cleveland.data at"),
        (["task=heart_disease", "sites=3"], 3, ""),
        (["data.partition=natural"], 2, "'digits' names no natural sites"),
        (["data.partition=pathological", "data.classes_per_site=11"], 2,
         "data.classes_per_site=11 is more than the 10 classes of 'digits'"),
        (["data.partition=size", "data.sizes=exponential"], 3, "or data.sizes=linear"),
        (["task=breast_cancer", "model=cnn"], 2, "model=cnn needs images"),
        (["privacy.epsilon=0.0001"], 4, "No noise reaches epsilon 0.0001"),
        (["policy=strict", "secagg=none"], 4, "ConsentRefused"),
        (["policy=strict", "privacy=none"], 4, "site-01 (ConsentRefused)"),
        (["policy=strict", "privacy.epsilon=50"], 4, "site-01 (BudgetSpent)"),
        (["train.device=cuda:7"], 2, "this machine has none"),
        (["data.partition=dirichlet", "data.alpha=0.01", "sites=60", "data.min_records=5"], 3,
         "below the 5 of data.min_records"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_bad_settings_and_data_end_with_a_sentence_and_their_exit_code(
    lepton, words, code, sentence, monkeypatch, tmp_path
):
    monkeypatch.setenv("LEPTON_CACHE", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    ended = lepton("simulate", *words)
    assert ended.code == code
    assert sentence in ended.err.replace("\n", " ")
    assert "Traceback" not in ended.err


def test_a_second_ctrl_c_stops_at_once_and_says_so(lepton, monkeypatch):
    def interrupted(settings, observer):
        raise KeyboardInterrupt

    monkeypatch.setattr("lepton_cli.simulation.start", interrupted)
    ended = lepton("simulate", "task=digits", "--json")
    assert ended.code == 130
    assert "the last finished round is kept" in json.loads(ended.out)["faults"][0]


def test_a_file_that_is_not_the_published_one_is_refused(lepton, tmp_path):
    folder = tmp_path / "data" / "heart-disease"
    folder.mkdir(parents=True)
    for name in ("cleveland", "hungarian", "switzerland", "va"):
        (folder / f"processed.{name}.data").write_text("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n")
    ended = lepton("simulate", "task=heart_disease", "data.root=data")
    assert ended.code == 3
    assert "ChecksumMismatch" in ended.err
    assert "delete it and fetch it again" in ended.err


@pytest.fixture
def broken_data(monkeypatch):
    """Returns a way to spoil the training records of breast_cancer."""
    whole = DATASETS["breast_cancer"]

    def spoil(change):
        monkeypatch.setitem(
            DATASETS,
            "breast_cancer",
            lambda root, prepare: (lambda data: replace(data, train=change(data.train)))(
                whole(root, prepare)
            ),
        )

    return spoil


def test_nan_in_the_data_is_refused_before_training(lepton, broken_data):
    def with_nan(train):
        features = train.features.clone()
        features[0, 0] = float("nan")
        return replace(train, features=features)

    broken_data(with_nan)
    ended = lepton("simulate", *QUICK)
    assert ended.code == 3
    assert "not finite" in ended.err
    assert not Path("runs").exists()


def empty_site(run, name):
    np.save(run.folder.site(name) / "rows.npy", np.array([], dtype=np.int64))


def stop_early(lepton, monkeypatch):
    """Returns a run that has one of its two rounds."""
    from lepton_cli.compose import compose_settings
    from lepton_cli.simulation import start
    from lepton_common.errors import Interrupted
    from lepton_server.progress import Observer

    class Stops(Observer):
        def on_round(self, report):
            self.stop_requested = True

    with pytest.raises(Interrupted):
        start(compose_settings(list(QUICK)), Stops())
    from lepton_client.site import forget_sites

    forget_sites()
    return find_run("last")


def test_a_site_with_no_data_is_named_and_the_others_go_on(lepton, monkeypatch):
    run = stop_early(lepton, monkeypatch)
    empty_site(run, "site-2")
    ended = lepton("simulate", "resume=last")
    assert ended.code == 0
    assert "site-2 (EmptySite)" in ended.err
    assert find_run("last").rounds[-1].failed == {"site-2": "EmptySite"}


def test_when_all_sites_fail_the_run_fails_and_keeps_what_was_finished(lepton, monkeypatch):
    run = stop_early(lepton, monkeypatch)
    for name in ("site-1", "site-2", "site-3"):
        empty_site(run, name)
    before = run.folder.checkpoint.read_bytes()
    ended = lepton("simulate", "resume=last")
    assert ended.code == 5
    assert "all 3 sites gave no usable answer" in ended.err
    run = find_run("last")
    assert run.status == "failed"
    assert json.loads(run.folder.outcome.read_text())["error"] == "QuorumNotMet"
    assert run.folder.checkpoint.read_bytes() == before
    assert len(run.rounds) == 1


@pytest.fixture
def mended(monkeypatch):
    """Lets training fail at one site, until the returned function is called."""
    import lepton_client.trainer as trainer

    train = trainer.train_plain

    def sometimes(model, task, records, received, recipe, seed):
        if len(records) == 151:
            raise KeyError("patient Quixote")
        return train(model, task, records, received, recipe, seed)

    monkeypatch.setattr(trainer, "train_plain", sometimes)
    return lambda: monkeypatch.setattr(trainer, "train_plain", train)


@pytest.mark.usefixtures("mended")
def test_a_site_that_raises_in_mid_round_is_named_without_its_words(lepton):
    ended = lepton("simulate", *QUICK)
    assert ended.code == 0
    assert "(KeyError)" in ended.err
    run = find_run("last")
    shown = run.report.read_text() + (run.folder.audit).read_text() + ended.err + ended.out
    assert "Quixote" not in shown
    failed = next(iter(run.rounds[0].failed))
    assert "Quixote" in (run.folder.site(failed) / "errors.log").read_text()


def test_with_secure_aggregation_a_sum_of_two_is_refused_and_the_round_resumes(lepton, mended):
    ended = lepton("simulate", *SECURE)
    assert ended.code == 7
    assert "2 sites masked and 3 are needed" in ended.err
    assert "(KeyError)" in ended.err
    assert "Quixote" not in ended.err + find_run("last").folder.audit.read_text()
    mended()
    assert lepton("simulate", "resume=last").code == 0


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_refused(lepton, monkeypatch, damage):
    run = stop_early(lepton, monkeypatch)
    data = bytearray(run.folder.checkpoint.read_bytes())
    if damage == "flipped":
        data[-9] ^= 1
    run.folder.checkpoint.write_bytes({"cut": data[:-5], "empty": b""}.get(damage, bytes(data)))
    ended = lepton("simulate", "resume=last")
    assert ended.code == 5
    assert "is damaged or of another model; start a new run" in ended.err


def test_a_missing_run_is_refused(lepton):
    assert lepton("simulate", "resume=nothing").code == 5
    assert lepton("audit", "verify").code == 5


@pytest.mark.parametrize("log", ["server", "site"])
@pytest.mark.parametrize("change", ["altered", "cut", "gone"])
def test_an_altered_log_does_not_verify(lepton, finished, log, change):
    run = finished(*QUICK)
    path = run.folder.audit if log == "server" else run.folder.site("site-2") / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if change == "altered":
        lines[1] = lines[1].replace(b'"kind":"', b'"kind":"x', 1)
    if change == "cut":
        lines = lines[:-1]
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(b"".join(lines))
    ended = lepton("audit", "verify", "last")
    assert ended.code == 6
    assert ended.err.startswith("AuditError")
    assert lepton("report", "last").code == 6


def test_a_sites_log_cut_before_its_last_masked_vector_does_not_verify(lepton, finished):
    path = finished(*SECURE).folder.site("site-2") / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"stage":"MASKED"' in line)
    path.write_bytes(b"".join(lines[:last]))
    assert lepton("audit", "verify", "last").code == 6


@pytest.mark.parametrize(
    "edit",
    ["config", "metrics", "model", "best_model", "site unknown", "logs cut to nothing"],
)
def test_files_that_do_not_fit_the_log_do_not_verify(lepton, finished, edit):
    folder = finished(*PRIVATE).folder
    if edit == "config":
        folder.config.write_text(folder.config.read_text().replace("1.0e-05", "1.0e-12"))
    elif edit == "metrics":
        folder.metrics_jsonl.write_text(
            folder.metrics_jsonl.read_text().replace('"accuracy": 0.', '"accuracy": 1.')
        )
    elif edit in ("model", "best_model"):
        path = folder.path / f"{edit}.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    elif edit == "site unknown":
        shutil.copytree(folder.site("site-1"), folder.site("site-9"))
    else:
        folder.metrics_jsonl.unlink()
        for path in (folder.audit, *folder.path.glob("sites/*/audit.jsonl")):
            path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    ended = lepton("audit", "verify", "last")
    assert ended.code == 6
    assert ended.err.startswith("AuditError")


def test_a_changed_configuration_is_not_resumed(lepton, monkeypatch):
    run = stop_early(lepton, monkeypatch)
    run.folder.config.write_text(run.folder.config.read_text().replace("rounds: 2", "rounds: 3"))
    ended = lepton("simulate", "resume=last")
    assert ended.code == 5
    assert "not the one this run began with" in ended.err


def test_a_run_has_one_writer_at_a_time(lepton, monkeypatch):
    from lepton_cli.simulation import only_writer

    run = stop_early(lepton, monkeypatch)
    with only_writer(run.folder):
        ended = lepton("simulate", "resume=last")
    assert ended.code == 5
    assert "Another process works on the run" in ended.err
    assert lepton("simulate", "resume=last").code == 0


def test_an_untouched_log_verifies(lepton, finished):
    finished(*QUICK)
    ended = lepton("audit", "verify", "last")
    assert ended.code == 0
    assert "Verified" in ended.out


def test_two_releases_under_one_charge_would_be_seen(lepton, finished):
    run = finished(*PRIVATE)
    from lepton_common.audit import AuditLog
    from lepton_common.identity.keys import SigningKey

    site = run.folder.site("site-1")
    log = AuditLog(site / "audit.jsonl", SigningKey.load(site / "signing.pem"), "site-1")
    release = next(r for r in log.records if r.kind == "release" and r.body["charge"])
    log.append("release", release.body)
    assert lepton("audit", "verify").code == 6
    shutil.rmtree(run.folder.path)
