"""Whole runs in which sites share noise: what the model holds, and what is said of it."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import lepton_cli
from lepton_cli.exposure import exposure
from lepton_common.arrays import Layout, read_parameters, write_parameters
from lepton_common.datasets.catalog import load_dataset
from lepton_common.models.catalog import initial_model
from lepton_common.privacy.accounting import epsilon
from lepton_common.privacy.events import RoundedSkellam
from lepton_common.privacy.plan import SHARE_VARIANCE, public_size_class
from lepton_common.tasks.catalog import find_task

DISTRIBUTED = ("task=breast_cancer", "sites=5", "rounds=2", "privacy=distributed")
SITE = ("task=breast_cancer", "sites=5", "rounds=2", "privacy=site")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_round_is_one_step_over_all_records_with_the_noise_that_was_promised():
    run = lepton_cli.simulate(
        "task=digits", "model=mlp", "sites=10", "rounds=1", "privacy=distributed",
        "privacy.epsilon=200", "privacy.spare_rounds=0", "train.learning_rate=1.0",
    )  # fmt: skip
    dataset, task = load_dataset("digits", None, "public_ranges"), find_task("digits")
    module = initial_model("mlp", dataset.input_shape, dataset.classes, run.settings.seed)
    start = read_parameters(module).numpy()
    clip, total = run.settings.privacy.clipping_norm, torch.zeros(len(start), dtype=torch.float64)
    for features, label in zip(dataset.train.features, dataset.train.labels, strict=True):
        module.zero_grad()
        task.losses(module(features[None]), label[None]).sum().backward()
        gradient = read_gradient(module)
        total += gradient * min(1.0, clip / float(gradient.norm()))
    write_parameters(module, torch.from_numpy(start))
    batch = sum(public_size_class(count) for count in sizes(run))
    final = load_file(run.folder.final_model)
    layout = Layout.of(module)
    end = np.concatenate([final[name].ravel() for name in layout.names])
    left = end - (start - (total / batch).numpy())
    site = next(iter(run.evidence.sites.values()))
    (event,) = site.events
    grid = clip / event.l2_sensitivity
    promised = math.sqrt(10 * SHARE_VARIANCE) * grid / batch
    # Ten shares, though only four were certain; 6 standard errors of a standard deviation.
    assert left.std() == pytest.approx(promised, rel=6 / math.sqrt(2 * len(left)))
    assert abs(left.mean()) < 6 * promised / math.sqrt(len(left))


def read_gradient(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()]).double()


def sizes(run):
    return [len(np.load(path)) for path in sorted(run.folder.path.glob("sites/*/rows.npy"))]


def test_every_number_of_colluders_has_its_epsilon(lepton):
    ended = lepton("simulate", *DISTRIBUTED, "--json")
    assert ended.code == 0
    document = json.loads(ended.out)
    shared = document["shared_noise"]
    assert (shared["shared"]["sites"], shared["shared"]["survivors"]) == (5, 4)
    assert shared["shared"]["colluders"] == 1
    assert [row[0] for row in shared["rows"]] == [0, 1, 2, 3]
    spent = document["sites"]["site-1"]["epsilon"]
    # As many as were tolerated, and as few answers as there may be: what was charged.
    assert shared["rows"][1][2] == pytest.approx(spent)
    for count, every, fewest in shared["rows"]:
        # More than are tolerated can lift a site's masks.
        shares = 5 - count if count <= 1 else 1
        assert every <= fewest <= shared["broken"]
        assert every == pytest.approx(_independent(shares, document), rel=1e-9)
    assert "at most 1 of 5 sites collude" in document["statement"]
    assert document["metrics"].keys() == {"accuracy", "loss"}  # none of the sites' own


def _independent(shares, document):
    """Returns epsilon by events made here from the noise that the run's accounting implies."""
    from lepton_cli.run import find_run

    run = find_run(document["run"])
    events = next(iter(run.evidence.sites.values())).events
    found = [
        RoundedSkellam(e.sample_rate, e.l2_sensitivity, e.dimension, shares * 2.0**28, e.steps)
        for e in events
    ]
    return epsilon(tuple(found), 1e-5)


def test_the_report_has_the_table_and_the_summary_too(lepton):
    ended = lepton("simulate", *DISTRIBUTED)
    assert "What shared noise protects against" in ended.out
    assert "secure aggregation broken" in ended.out
    run = lepton_cli.run.list_runs()[-1]
    assert "What shared noise protects against" in run.report.read_text()
    assert exposure(run).shared.survivors == 4


def test_a_run_without_shared_noise_has_no_such_table(lepton):
    ended = lepton("simulate", "task=breast_cancer", "sites=4", "rounds=1")
    assert "shared noise" not in ended.out


@pytest.mark.slow
def test_baselines_have_noise_of_their_own():
    run = lepton_cli.simulate(*DISTRIBUTED, baselines=True)
    assert set(run.baselines) == {"pooled", "pooled_without_privacy", "local"}


@pytest.mark.slow
def test_baselines_train_on_the_features_and_with_the_momentum_of_the_run():
    values = {"data": {"prepare": "scattering"}, "model": "logistic", "rounds": 3, "sites": 2}
    run = lepton_cli.simulate(
        "task=digits", "privacy=none", "strategy=fedavgm", **values, baselines=True
    )
    without = lepton_cli.simulate("task=digits", "privacy=none", **values, baselines=True)
    assert set(run.baselines) == {"pooled", "local"}
    assert run.baselines != without.baselines


def test_whole_updates_are_protected_and_few_sites_are_warned_of(lepton):
    ended = lepton("simulate", *SITE)
    assert ended.code == 0
    said = " ".join(ended.out.split())
    assert "Protected per site" in said
    assert "5 sites are few" in said
    run = lepton_cli.run.list_runs()[-1]
    site = next(iter(run.evidence.sites.values()))
    assert site.units == {"site"}
    assert site.epsilon <= 8.0


@pytest.mark.slow
def test_many_sites_learn_from_whole_updates():
    run = lepton_cli.simulate(
        "task=breast_cancer", "sites=40", "rounds=3", "privacy=site", "privacy.epsilon=40",
        "secagg.colluders=1", "federation.quorum=0.9", "train.local_epochs=3",
        "train.learning_rate=0.5",
    )  # fmt: skip
    assert run.metrics["accuracy"] > 0.75


@pytest.mark.slow
def test_the_bound_on_updates_follows_their_lengths():
    run = lepton_cli.simulate(
        "task=breast_cancer", "sites=8", "rounds=4", "privacy=site", "privacy.epsilon=500",
        "privacy.clip_quantile=0.5", "privacy.clipping_norm=20", "secagg.colluders=1",
    )  # fmt: skip
    shares = [report.metrics["within_clip"] for report in run.rounds]
    assert np.mean(shares) == pytest.approx(1.0, abs=0.5)  # noised: seven standard deviations
    assert all(share != 1.0 for share in shares)


def test_each_round_is_charged_as_one_step():
    run = lepton_cli.simulate(*DISTRIBUTED, "rounds=3")
    steps = [event.steps for event in next(iter(run.evidence.sites.values())).events]
    assert steps == [1, 1, 1], [report.failed for report in run.rounds]
