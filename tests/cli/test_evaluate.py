"""``lepton evaluate``: figures at the sites, against scikit-learn; ledgers, logs and refusals."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics

from lepton_cli.compose import compose_settings
from lepton_cli.evaluation_run import evaluate, evaluation_settings
from lepton_cli.fairness import fairness
from lepton_cli.run import Run, find_run
from lepton_cli.simulated_sites import dataset_of, kept_for_evaluation, split
from lepton_cli.simulation import start
from lepton_common.errors import RunNotFound, SettingsError, SitesRefused

SMALL = ("task=breast_cancer", "sites=4", "rounds=2", "privacy=none")
HELD = (*SMALL, "data.held_back=0.4")


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Returns a maker of small runs."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: start(compose_settings([*HELD, *words]))


def of_run(run):
    return json.loads(run.folder.statistics.read_text())


def pooled(run):
    """Returns the model's logits on everybody who is held back, and the labels."""
    train = dataset_of(run.settings).train
    own = train.take(np.flatnonzero(kept_for_evaluation(run.settings)))
    with torch.no_grad():
        return run.model()(own.features).double().numpy(), own.labels.numpy()


def test_an_exact_evaluation_is_scikit_learns_on_pooled_records(runs):
    run = runs()
    found = of_run(evaluate(run, ["privacy=none", "statistics.bins=1000"]))
    logits, labels = pooled(run)
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
        evaluate(run, ["privacy=none"])


def test_a_private_evaluation_is_charged_to_the_sites_of_the_run(runs, lepton):
    run = runs("privacy=distributed", "train.local_steps=1", "privacy.epsilon=2")
    ended = lepton("evaluate", run.name, "privacy.epsilon=3")
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert "held back at 4 sites" in said
    assert "accuracy" in said
    assert "charged to each site's ledger" in said
    asked = find_run("last")
    found = of_run(asked)
    assert 2.99 < found["privacy"]["epsilon"] <= 3.0
    assert found["figures"]["accuracy"]["error"] > 0
    for site in sorted((run.folder.path / "sites").iterdir()):
        (row,) = json.loads(lepton("privacy", "verify", str(site), "--json").out)["data"]
        assert row["charges"] == 2 + 1
        assert row["epsilon"] > 3.0  # training and evaluation together
    # Each run's logs prove its own, in folders that share their sites.
    for one, most in ((run, 2.0), (asked, 3.0)):
        assert lepton("audit", "verify", str(one.folder.path)).code == 0
        spent = [site.epsilon for site in Run(one.folder).evidence.sites.values()]
        assert max(spent) <= most
    assert "accuracy" in lepton("report", str(asked.folder.path)).out
    path = asked.folder.evaluated
    path.write_bytes(path.read_bytes() + b" ")
    altered = lepton("audit", "verify", str(asked.folder.path))
    assert altered.code == 6
    assert "not the model" in altered.err


def test_next_to_no_noise_tells_the_truth_also_without_secure_aggregation(runs):
    run = runs("privacy.epsilon=null")
    logits, labels = pooled(run)
    truth = metrics.accuracy_score(labels, logits.argmax(1))
    for words in ([], ["secagg=none"]):  # the second is another query, not the same again
        found = of_run(evaluate(run, ["privacy.epsilon=900", *words]))
        figure = found["figures"]["accuracy"]
        assert figure["value"] == pytest.approx(truth, abs=5 * figure["error"])
        assert figure["error"] < 0.05
        assert found["people"]["value"] == pytest.approx(
            len(labels), abs=5 * found["people"]["error"]
        )


@pytest.mark.parametrize("engine", ["processes"])
def test_it_works_on_other_engines(runs, engine):
    run = runs()
    one = of_run(evaluate(run, ["privacy=none", f"engine={engine}", "engine.workers=1"]))
    logits, labels = pooled(run)
    truth = metrics.accuracy_score(labels, logits.argmax(1))
    assert one["figures"]["accuracy"]["value"] == pytest.approx(truth, abs=1e-4)


def test_what_cannot_be_asked_is_refused_in_one_sentence(runs):
    run = runs("policy.statistics=null")
    for words in ([], ["privacy=none"]):
        with pytest.raises(SitesRefused, match="outside what the sites allow"):
            evaluate(run, words)
    for words, reason in (
        (["rounds=3"], "rounds is as the run"),
        (["data.held_back=0.9"], r"data\.held_back is as the run"),
        (["statistics.features=[0]"], "is as the run"),
        (["privacy=site"], "choose privacy=distributed"),
        (["privacy=none", "secagg.width=16"], r"secagg\.width=32"),
        (["privacy=none", "secagg.rotate=true"], "an?.*sum as it is|sum as it is"),
    ):
        with pytest.raises(SettingsError, match=reason):
            evaluation_settings(run, words)
    nobody = start(compose_settings([*SMALL, "data.held_back=0.0"]))
    with pytest.raises(SettingsError, match="hold nobody's records back"):
        evaluate(nobody, [])
    together = runs("secagg=none", "engine=vectorized")
    with pytest.raises(RunNotFound, match="no sites here"):
        evaluate(together, [])


def test_sites_that_are_trained_together_hold_the_same_people_back(runs):
    from lepton_client.hosted.host import Host

    run = runs("secagg=none", "engine=vectorized")
    mask, host = kept_for_evaluation(run.settings), Host(run.folder.host)
    parts = split(run.settings)
    for place in range(4):
        assert set(host.member(place).rows) == set(parts[place][~mask[parts[place]]])
    assert 0.25 < mask.mean() < 0.55


def test_baselines_train_on_nobody_who_is_held_back(runs, monkeypatch):
    from lepton_cli import baselines

    seen = []
    monkeypatch.setattr(
        baselines, "_reached", lambda settings, dataset, records, name: seen.append(records) or 0.5
    )
    run = runs("baselines=true")
    train = dataset_of(run.settings).train
    held = {r.numpy().tobytes() for r in train.features[kept_for_evaluation(run.settings)]}
    assert len(seen) == 1 + 4
    for records in seen:
        assert not held & {row.numpy().tobytes() for row in records.features}
    assert len(seen[0]) == sum(len(records) for records in seen[1:])


def test_the_report_tells_how_evenly_a_simulated_model_serves_its_sites(runs):
    run = runs()
    found = fairness(run)
    mask, parts, model = kept_for_evaluation(run.settings), split(run.settings), run.model()
    train, each = dataset_of(run.settings).train, {}
    for index in range(4):
        own = train.take(parts[index][mask[parts[index]]])
        with torch.no_grad():
            right = model(own.features).argmax(1) == own.labels
        each[parts.name(index)] = float(right.double().mean())
    assert (found.judged, found.sites, found.held_back) == (4, 4, True)
    assert found.spread.worst == pytest.approx(min(each.values()))
    assert each[found.spread.best_site] == pytest.approx(max(each.values()))
    assert found.spread.mean == pytest.approx(np.mean(list(each.values())))
    page = run.report.read_text()
    assert "How evenly it serves the sites" in page
    assert f"{found.spread.worst:.4f}" in page
    assert "on the people that it holds back" in page
    (run.folder.path / "sites").rename(run.folder.path / "elsewhere")
    assert fairness(run) is None  # as where sites are real: their data is not here
