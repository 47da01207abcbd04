"""``lepton evaluate``: figures at the sites, against scikit-learn; ledgers, logs and refusals."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from sklearn import metrics

from lepton_cli import baselines, report, simulation
from lepton_cli.compose import compose_settings
from lepton_cli.evaluation_run import evaluate, evaluation_settings
from lepton_cli.fairness import fairness
from lepton_cli.packs.make import make_coordinator_pack, make_site_pack
from lepton_cli.packs.verify import verify_pack, verify_together
from lepton_cli.run import Run, find_run
from lepton_cli.simulated_sites import dataset_of, kept_for_evaluation, split
from lepton_cli.simulation import create, start
from lepton_client.hosted.host import Host
from lepton_common.audit import AuditLog
from lepton_common.errors import (
    EvidenceContradicts,
    Interrupted,
    RunNotFound,
    SettingsError,
    SitesRefused,
)
from lepton_common.identity.keys import SigningKey
from lepton_server.run_folder import RunFolder

HELD = ("task=breast_cancer", "sites=4", "rounds=2", "privacy=none", "data.held_back=0.4")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """Returns the folder of a run that nothing was asked of since."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("evaluate"))
        patch.setattr("lepton_cli.report.write_report", lambda run: None)
        words = [*HELD, f"runs={tmp_path_factory.mktemp('runs')}"]
        return start(compose_settings(words)).folder.path


def copy(path, folder):
    return Run(RunFolder(shutil.copytree(path, folder / path.name)))


@pytest.fixture(scope="module")
def trained(untouched, tmp_path_factory):
    """Returns a run, which the tests here share, and its sites with it."""
    return copy(untouched, tmp_path_factory.mktemp("shared"))


@pytest.fixture
def copied(untouched, tmp_path):
    """Returns a copy of the run, to be spoiled."""
    return copy(untouched, tmp_path)


def of_run(run):
    return json.loads(run.folder.statistics.read_text())


def pooled(run):
    """Returns the model's logits on everybody who is held back, and the labels."""
    train = dataset_of(run.settings).train
    own = train.take(np.flatnonzero(kept_for_evaluation(run.settings)))
    with torch.no_grad():
        return run.model()(own.features).double().numpy(), own.labels.numpy()


def test_an_exact_evaluation_is_scikit_learns_on_pooled_records(trained):
    found = of_run(evaluate(trained, ["privacy=none", "statistics.bins=1000"]))
    logits, labels = pooled(trained)
    said, scores = logits.argmax(1), logits[:, 1] - logits[:, 0]
    assert found["people"]["value"] == pytest.approx(len(labels), abs=1e-3)
    assert 0.25 < len(labels) / 455 < 0.55
    figures = {name: figure["value"] for name, figure in found["figures"].items()}
    expected = {
        "accuracy": metrics.accuracy_score(labels, said),
        "balanced_accuracy": metrics.balanced_accuracy_score(labels, said),
        "recall_0": metrics.recall_score(labels, said, pos_label=0),
        "precision_macro": metrics.precision_score(labels, said, average="macro"),
        "f1_macro": metrics.f1_score(labels, said, average="macro"),
        "log_loss": metrics.log_loss(labels, 1 / (1 + np.exp(-scores))),
    }
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=2e-4), name
    assert figures["roc_auc"] == pytest.approx(metrics.roc_auc_score(labels, scores), abs=5e-3)
    assert found["privacy"] == {"mode": "none", "secagg": "sa1", "delta": None, "epsilon": None}
    with pytest.raises(SitesRefused):  # a second exact sum on the same model
        evaluate(trained, ["privacy=none"])


def test_a_private_evaluation_is_charged_to_the_sites_of_the_run(trained, lepton):
    sites = sorted((trained.folder.path / "sites").iterdir())

    def ledger(site):
        return json.loads(lepton("privacy", "verify", str(site), "--json").out)["data"]

    ended = lepton("evaluate", str(trained.folder.path), "privacy.epsilon=8")
    assert ended.code == 0
    said = " ".join(ended.out.split())
    for words in ("held back at 4 sites", "accuracy", "charged to each site's ledger"):
        assert words in said
    asked = find_run("last", str(trained.folder.path.parent))
    found = of_run(asked)
    assert 7.9 < found["privacy"]["epsilon"] <= 8.0
    figure, (logits, labels) = found["figures"]["accuracy"], pooled(trained)
    truth = metrics.accuracy_score(labels, logits.argmax(1))
    assert figure["value"] == pytest.approx(truth, abs=5 * figure["error"])
    assert 0 < figure["error"] < 0.2
    for site in sites:
        (row,) = ledger(site)
        assert (row["charges"], row["epsilon"]) == (1, pytest.approx(8.0, rel=1e-2))
    # Each run's logs prove its own, in folders that share their sites.
    for run, spent in ((trained, None), (asked, pytest.approx(8.0, rel=1e-2))):
        assert lepton("audit", "verify", str(run.folder.path)).code == 0
        assert [site.epsilon for site in run.evidence.sites.values()] == 4 * [spent]
    assert "accuracy" in lepton("report", str(asked.folder.path)).out
    path = asked.folder.evaluated
    whole = path.read_bytes()
    path.unlink()
    path.write_bytes(whole + b" ")
    altered = lepton("audit", "verify", str(asked.folder.path))
    assert altered.code == 6
    assert "not the model" in altered.err


def test_sites_may_be_asked_without_secure_aggregation(copied):
    found = of_run(evaluate(copied, ["privacy=record", "privacy.epsilon=900", "secagg=none"]))
    logits, labels = pooled(copied)
    truth = metrics.accuracy_score(labels, logits.argmax(1))
    figure, people = found["figures"]["accuracy"], found["people"]
    assert figure["value"] == pytest.approx(truth, abs=5 * figure["error"])
    assert figure["error"] < 0.1
    assert people["value"] == pytest.approx(len(labels), abs=5 * people["error"])


@pytest.mark.slow
def test_it_works_on_another_engine(copied):
    found = of_run(evaluate(copied, ["privacy.epsilon=900", "engine=processes"]))
    assert found["sites"] == {"answered": 4, "failed": {}}


@pytest.mark.parametrize("words", [[], ["privacy=record", "secagg=none"]])
def test_sites_whose_policy_answers_no_statistics_refuse(copied, words):
    for path in (copied.folder.path / "sites").glob("*/site.yaml"):
        file = yaml.safe_load(path.read_text())
        file["policy"]["statistics"] = None
        path.write_text(yaml.safe_dump(file))
    with pytest.raises(SitesRefused, match="outside what the sites allow"):
        evaluate(copied, words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["rounds=3"], "rounds is as the run"),
        (["data.held_back=0.9"], r"data\.held_back is as the run"),
        (["statistics.features=[0]"], "is as the run"),
        (["privacy=site"], "choose privacy=distributed"),
        (["privacy=none", "secagg.width=16"], r"secagg\.width=32"),
        (["privacy=none", "secagg.rotate=true"], "a sum as it is"),
    ],
)
def test_what_cannot_be_asked_is_named(trained, words, reason):
    with pytest.raises(SettingsError, match=reason):
        evaluation_settings(trained, words)


def test_runs_without_people_or_sites_to_ask_are_named(copied):
    (copied.folder.path / "sites").rename(copied.folder.path / "elsewhere")
    with pytest.raises(RunNotFound, match="no sites here"):
        evaluate(copied, [])
    copied.folder.final_model.unlink()
    with pytest.raises(RunNotFound, match="no model yet"):
        evaluate(copied, [])
    text = copied.folder.config.read_text()
    copied.folder.config.write_text(text.replace("held_back: 0.4", "held_back: 0.0"))
    with pytest.raises(SettingsError, match="hold nobody's records back"):
        evaluate(Run(copied.folder), [])


def test_sites_that_are_trained_together_hold_the_same_people_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = compose_settings([*HELD, "secagg=none", "engine=vectorized"])
    host = Host(create(settings).host)
    mask, parts = kept_for_evaluation(settings), split(settings)
    for place in range(4):
        assert set(host.member(place).rows) == set(parts[place][~mask[parts[place]]])
    assert 0.25 < mask.mean() < 0.55


def test_baselines_train_on_nobody_who_is_held_back(tmp_path, monkeypatch):
    seen = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        baselines, "_reached", lambda settings, dataset, records, *_: seen.append(records) or 0.5
    )
    monkeypatch.setattr(simulation, "run_apps", lambda *given: None)
    settings = compose_settings([*HELD, "baselines=true"])
    with pytest.raises(Interrupted):
        start(settings)
    train = dataset_of(settings).train
    held = {row.numpy().tobytes() for row in train.features[kept_for_evaluation(settings)]}
    assert len(seen) == 1 + 4
    for records in seen:
        assert not held & {row.numpy().tobytes() for row in records.features}
    assert len(seen[0]) == sum(len(records) for records in seen[1:])


def test_the_report_tells_how_evenly_a_simulated_model_serves_its_sites(copied, monkeypatch):
    found, settings = fairness(copied), copied.settings
    mask, parts, model = kept_for_evaluation(settings), split(settings), copied.model()
    train, each = dataset_of(settings).train, {}
    for index in range(4):
        own = train.take(parts[index][mask[parts[index]]])
        with torch.no_grad():
            right = model(own.features).argmax(1) == own.labels
        each[parts.name(index)] = float(right.double().mean())
    assert (found.judged, found.sites, found.held_back) == (4, 4, True)
    assert found.spread.worst == pytest.approx(min(each.values()))
    assert each[found.spread.best_site] == pytest.approx(max(each.values()))
    assert found.spread.mean == pytest.approx(np.mean(list(each.values())))
    monkeypatch.setattr(report, "draw_all", lambda run: {})
    monkeypatch.setattr(report, "judge", lambda run: ({}, {}))
    report.write_report(copied)
    page = copied.report.read_text()
    assert "How evenly it serves the sites" in page
    assert f"{found.spread.worst:.4f}" in page
    assert "on the people that it holds back" in page
    (copied.folder.path / "sites").rename(copied.folder.path / "elsewhere")
    assert fairness(copied) is None  # as where sites are real: their data is not here


def test_a_crowd_is_judged_by_some_of_its_sites(copied, monkeypatch):
    monkeypatch.setattr("lepton_cli.fairness._MOST_SITES", 3)
    found = fairness(copied)
    assert (found.judged, found.sites) == (3, 4)


def test_packs_of_an_evaluation_tell_which_model_the_sites_were_charged_for(copied, tmp_path):
    asked = evaluate(copied, ["privacy.epsilon=8"])
    key, root = SigningKey.load(asked.folder.server_key), asked.folder.roster_root.read_text()

    def packed(name, pack):
        (tmp_path / name).write_bytes(pack.data)
        return verify_pack(tmp_path / name, root)

    site = packed("site.zip", make_site_pack(copied.folder.site("site-1"), asked.name))
    server = packed("server.zip", make_coordinator_pack(asked.folder, asked.settings, key))
    assert verify_together([site, server]) == 2
    assert server.facts["statistics"]["model_file"] == of_run(asked)["model_file"]
    assert of_run(asked)["model_file"].encode() in server.pack.members["page.html"]
    (row,) = server.facts["rounds"]
    assert site.facts["models"] == {"1": [row["model_before"]]}
    assert "nothing was trained" in server.pack.members["model-card.md"].decode()
    log = AuditLog(asked.folder.audit, key, "server")
    (body,) = [record.body for record in log.records if record.kind == "collected"]
    log.append("collected", body | {"model": "0" * 64})
    other = packed("other.zip", make_coordinator_pack(asked.folder, asked.settings, key))
    # What a second try has not told yet is not what the first one told.
    assert other.facts["statistics"] == {}
    with pytest.raises(EvidenceContradicts, match="round 1 began from different models"):
        verify_together([site, other])
